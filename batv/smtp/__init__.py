"""SMTP as octets: paths, parameters, replies, the DATA scanner, EHLO keywords. No I/O.

Source: RFC 5321.
"""
