"""`batv corpus run` and `diff`: what a configuration loses and lets through, told from what really happened."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from batv.corpus.classes import CLASSES
from tests.corpus.ground import TODAY
from tests.support.command import child_environment
from tests.support.port import free_port
from tests.support.service import ServiceProcess, today

if TYPE_CHECKING:
    from tests.corpus.ground import Ground

POLICIES: Final = ("discard", "reject", "quarantine", "mark", "pass")


def corpus(ground: Ground, config: Path | None = None, count: int = 250) -> str:
    """Make a corpus and return its folder."""
    folder = ground.folder / f"corpus-{config.stem if config else 'batv'}"
    said = ground("generate", "--out", str(folder), "--count", str(count), config=config)
    assert said.status == 0, said.err
    return str(folder)


@pytest.mark.parametrize("on_forged", POLICIES)
def test_every_message_meets_what_is_expected(ground: Ground, on_forged: str) -> None:
    """Whatever the site wants for forged bounces, each recipient gets what the manifest says."""
    config = ground.configure("site.toml", on_forged)
    said = ground("run", corpus(ground, config), "--json", config=config)
    assert said.status == 0, said.out
    assert said.fields["mistakes"] == []
    assert set(said.fields["matrix"]) == set(CLASSES)
    assert said.fields["genuine_lost"] == 0
    assert said.fields["ordinary_touched"] == 0
    assert (said.fields["forged_delivered"] == 0) == (on_forged != "pass")


SCOPE = """
[domains."*.example.edu"]
on_untagged = "quarantine"
on_expired = "mark"
on_bad_signature = "reject"
scheme = "strong"
placement = "subaddress"
exempt_recipients = ["*e"]
on_bounce_with_sender = "discard"
exempt_senders = ["mailer-daemon@"]

[tags]
scheme = "strong"
on_too_long = "refuse"

[[exemptions]]
reason = "programs"
senders = ["*n@", "victim@"]
"""


def test_what_is_expected_follows_exemptions_wildcards_schemes_and_refinements(ground: Ground) -> None:
    """The manifest is made from the policy, not from its defaults."""
    config = ground.configure("site.toml", more=SCOPE)
    folder = corpus(ground, config, 400)
    said = ground("run", folder, "--json", config=config)
    assert said.status == 0, said.out
    assert said.fields["mistakes"] == []
    assert said.fields["genuine_lost"] == 0
    manifest = (Path(folder) / "manifest.jsonl").read_text()
    for word in ("@below.example.edu", "prvs2=", "+prvs2=", "exempt", "no mail came from it", "mark", "quarantine"):
        assert word in manifest, word


def test_a_domain_that_is_switched_on_by_itself_is_scored_as_in_force(ground: Ground) -> None:
    """What the configuration would lose in the end is the question, not what its first day lets through."""
    config = ground.configure("site.toml", more='[domains."new.example"]\nrollout = "auto"\n')
    said = ground("run", corpus(ground, config), "--json", config=config)
    assert said.status == 0, said.out
    assert said.fields["mistakes"] == []
    assert said.fields["forged_delivered"] == 0


def test_clients_that_are_exempt_are_not_expected_to_be_judged(ground: Ground) -> None:
    """A site exempts servers of its own, on this host too; what is said of the others must still be true."""
    config = ground.configure("site.toml", "mark", SCOPE + "\n[ledger]\nenabled = true\n", "rescue = true\n")
    text = config.read_text()
    config.write_text(text.replace("[inbound]\n", '[inbound]\nexempt_clients = ["127.91.0.0/16", "127.92.0.0/24"]\n'))
    folder = ground.folder / "corpus"
    made = ground("generate", "--out", str(folder), "--count", "400", config=config)
    assert "17 of the 48 clients of the corpus are in exempt_clients: no forged bounce of theirs is judged" in made.err
    said = ground("run", str(folder), "--json", config=config)
    assert said.status == 0, said.out
    assert said.fields["mistakes"] == []
    met = said.fields["matrix"]["forged-random-tag"]
    assert (met["delivered"] > 0, met["marked"] > 0) == (True, True)


def test_where_all_clients_are_exempt_nothing_is_judged(ground: Ground) -> None:
    """As with the whole of this host's network, at a proxy that runs."""
    port = free_port()
    live = ground.folder / "live"
    live.mkdir()
    with ServiceProcess(live, f"127.0.0.1:{port}") as service:
        config = service.config
        config.write_text(config.read_text().replace("[inbound]\n", '[inbound]\nexempt_clients = ["127.0.0.0/8"]\n'))
        service.reload()
        service.wait_for_log("reloaded")
        made = ground("generate", "--out", str(live / "corpus"), "--count", "120", config=config, today=today())
        assert made.status == 0, made.err
        host, inbound = service.inbound
        said = ground(
            "run", str(live / "corpus"), "--inbound", f"{host}:{inbound}", "--sink", f"127.0.0.1:{port}", "--json",
            config=config, today=today(),
        )  # fmt: skip
    assert said.status == 0, (said.out, said.err)
    assert said.fields["mistakes"] == []
    assert said.fields["matrix"]["storm"]["delivered"] == sum(said.fields["matrix"]["storm"].values())


def test_refused_newlines_are_expected_where_the_site_refuses_them(ground: Ground) -> None:
    """`bare_newlines` decides over ordinary mail too: what it costs must be in the score."""
    config = ground.configure("site.toml", more='[smtp]\nbare_newlines = "reject"\n')
    said = ground("run", corpus(ground, config), "--json", config=config)
    assert said.status == 0, said.out
    assert said.fields["matrix"]["ordinary"]["rejected"] > 0


def test_the_matrix_is_printed_by_class(ground: Ground) -> None:
    """The answer stands at one look: classes down, outcomes across, and the three sums that count."""
    said = ground("run", corpus(ground), "--quiet")
    assert said.status == 0
    head = said.out.splitlines()[0].split()
    assert head == ["class", "delivered", "discarded", "rejected", "answered", "wrong"]
    for kind in CLASSES:
        assert kind in said.out
    assert "genuine bounces lost: 0; forged delivered: 0; ordinary mail touched: 0" in said.out


def test_a_corpus_made_for_another_configuration_shows_what_differs(ground: Ground) -> None:
    """The exit status is 1, and each wrong one is listed with the reason that the proxy gave; no tag stands whole."""
    lenient = ground.configure("lenient.toml", "pass")
    said = ground("run", corpus(ground), config=lenient)
    assert said.status == 1
    wrong = [line for line in said.out.splitlines() if line.startswith("wrong: ")]
    assert len(wrong) == 20
    assert "expected discarded (" in wrong[0]
    assert "happened delivered (" in wrong[0]
    assert "the proxy: " in wrong[0]
    assert not [line for line in wrong if "prvs=" in line and "****" not in line and "malformed" not in line]


def test_a_ring_that_lost_its_key_shows_as_genuine_bounces_lost(ground: Ground) -> None:
    """The mistake that costs users their bounces must be the loudest."""
    folder = corpus(ground)
    (ground.folder / "keys" / "example.net.ring").unlink()
    found = ground("run", folder, "--json")
    assert found.status == 1
    assert found.fields["genuine_lost"] > 0
    mistake = next(each for each in found.fields["mistakes"] if each["kind"].startswith("genuine"))
    assert mistake["happened"].startswith("discarded (unknown-key)")


def test_two_configurations_are_compared(ground: Ground) -> None:
    """What changes hands, and nothing else."""
    folder = corpus(ground)
    strict, marking = ground.config, ground.configure("marking.toml", "mark")
    same = ground("diff", folder, str(strict), str(strict), "--json")
    assert same.status == 0
    assert same.fields["changes"] == []
    found = ground("diff", folder, str(strict), str(marking), "--json")
    assert found.status == 0
    changes = {(each["before"], each["after"]) for each in found.fields["changes"]}
    assert changes == {("discarded", "marked")}
    table = ground("diff", folder, str(strict), str(marking))
    assert "storm" in table.out
    assert "recipients meet something else" in table.out


def test_a_proxy_that_runs_is_scored(ground: Ground) -> None:
    """As it is installed, in its own process: its journal gives the reasons."""
    port = free_port()
    live = ground.folder / "live"
    live.mkdir()
    with ServiceProcess(live, f"127.0.0.1:{port}") as service:
        config = service.config
        made = ground("generate", "--out", str(live / "corpus"), "--count", "120", config=config, today=today())
        assert made.status == 0, made.err
        host, inbound = service.inbound
        said = ground(
            "run", str(live / "corpus"), "--inbound", f"{host}:{inbound}", "--sink", f"127.0.0.1:{port}", "--json",
            config=config, today=today(),
        )  # fmt: skip
    assert said.status == 0, (said.out, said.err)
    assert said.fields["mistakes"] == []


def test_the_configured_addresses_are_not_touched(ground: Ground) -> None:
    """A replay on the host of a running proxy must not get into its way."""
    connections: list[object] = []

    async def listen() -> int:
        async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(reader)
            writer.close()

        server = await asyncio.start_server(taken, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            config = ground.configure("site.toml")
            config.write_text(config.read_text().replace("10027", str(port)).replace("10028", str(port + 1)))
            said = await asyncio.to_thread(ground, "run", folder, config=config)
            return said.status

    folder = corpus(ground, count=80)
    assert asyncio.run(listen()) == 0
    assert connections == []
    assert not (ground.folder / "var").exists()


def test_the_service_does_not_load_what_only_corpora_need() -> None:
    """A proxy that runs for months carries nothing of it."""
    code = "import sys, batv.cli.serve, batv.proxy.service; sys.exit('batv.corpus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=child_environment(), check=False).returncode == 0


def test_a_corpus_of_one_message_is_told_in_the_singular(ground: Ground) -> None:
    """One message of one's own is how a question is looked into."""
    folder = ground.folder / "corpus"
    made = ground("generate", "--out", str(folder), "--count", "1")
    assert made.out.startswith("1 message in ")
    assert "\n1 message to 1 recipient in " in ground("run", str(folder)).out
    same = ground("diff", str(folder), str(ground.config), str(ground.config))
    assert same.out.endswith("0 of 1 recipient meet something else\n")


def test_a_rate_is_kept(ground: Ground) -> None:
    """For proxies that others use at the same time."""
    said = ground("run", corpus(ground, count=60), "--rate", "60", "--json")
    assert said.status == 0
    assert said.fields["seconds"] >= 0.9


def test_a_corpus_says_the_same_on_any_later_day(ground: Ground) -> None:
    """Our own proxy lives on the day for which it was made."""
    assert ground("run", corpus(ground, count=60), today=TODAY + 100).status == 0
