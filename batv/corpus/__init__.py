"""Bounce corpora: labelled messages made from a seed, replayed over SMTP against the proxies, and scored.

They answer what a configuration would lose and what it would let through, before any user is hit. Nothing here is
loaded by a running service.
"""
