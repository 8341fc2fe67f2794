"""Probes: from which addresses they are sent, how these are known again, and what the metrics say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batv.address import Mailbox
from batv.config import ProbeSettings
from batv.day import Day
from batv.keyring import Key, Secret
from batv.probe import METRICS, Loop, Outcome, Probes, ProbeSender, metrics
from batv.signing import Style, sign_with
from batv.tag import Placement, Scheme, shorten

KEY = Key(3, Secret(b"published: the secret of tests"), Day.from_iso("2026-01-01"))
STYLES = [Style(placement=placement, scheme=scheme) for placement in Placement for scheme in Scheme]


@given(
    st.sampled_from(["probe+*@example.com", "*@example.com", "a.*-b@sub.example.com", "PROBE*@Example.COM"]),
    st.text("0123456789abcdef", min_size=1, max_size=12),
    st.sampled_from(STYLES),
    st.booleans(),
)
def test_an_address_is_known_again_whatever_tag_it_has(
    written: str,
    word: str,
    style: Style,
    as_it_was: bool,  # noqa: FBT001 -- drawn
) -> None:
    """In the journal, where the signature is cut away, and in capitals, as some servers write addresses."""
    sender = ProbeSender.parse(written)
    address = sender.of(word)
    tagged = sign_with(address, KEY, Day.from_iso("2026-11-23"), style)
    for mailbox in (address, tagged):
        path = shorten(f"<{mailbox.octets.decode()}>")
        assert sender.word_in(path if as_it_was else path.upper()) == word


@pytest.mark.parametrize(
    "path",
    [
        "<>",
        "<probe@example.com>",
        "<probe+@example.com>",
        "<probe+xyz@example.com>",
        "<probe+00@example.com.other.example>",
        "<probe+00@other.example>",
        "<joe@example.com>",
        "<xprobe+00@example.com>",
        "<prvs=3789******=joe@example.com>",
    ],
)
def test_no_other_address_is_taken_for_a_probe_s(path: str) -> None:
    """What comes to others is evidence, and is told in reports."""
    assert ProbeSender.parse("probe+*@example.com").word_in(path) is None


@pytest.mark.parametrize(
    "text", ["probe@example.com", "*@*", "a*b*@example.com", "nobody", '"a*"@example.com', "ü*@e.de"]
)
def test_an_address_that_could_not_be_another_each_time_is_refused(text: str) -> None:
    """Whoever knows it could send bounces to it, and have the loop taken for broken."""
    with pytest.raises(ValueError, match=r"star|no mail address|ASCII"):
        ProbeSender.parse(text)


def test_the_settings_show_what_was_written() -> None:
    """As `batv config show` prints it."""
    settings = ProbeSettings(sender="probe+*@example.com", recipient="nobody@remote.example")  # type: ignore[arg-type] # validated
    assert str(settings.sender) == "probe+*@example.com"
    assert settings.recipient == Mailbox.parse(b"nobody@remote.example")


def test_the_metrics_say_how_the_last_probe_ended() -> None:
    """One that is not known is not there: an alarm for its absence is better than one that never comes."""
    broken = Probes(1.0, Outcome(Loop.BROKEN, "lost", "probe+00@example.com", 1_795_446_149.25), 1_795_359_749.0)
    lines = metrics(broken).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "batv_probe_success 0",
        "batv_probe_broken 1",
        "batv_probe_timestamp_seconds 1795446149.25",
        "batv_probe_success_timestamp_seconds 1795359749",
    ]
    assert metrics(Probes(1.0)) == ""


def test_each_metric_has_its_help_and_its_type() -> None:
    """As Prometheus's text format wants it."""
    worked = Outcome(Loop.WORKS, "the bounce came home", "probe+00@example.com", 100.0, 1.5)
    lines = metrics(Probes(90.0, worked, 100.0)).splitlines()
    for number, (name, about) in enumerate(METRICS.items()):
        assert lines[3 * number : 3 * number + 2] == [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
        assert lines[3 * number + 2].startswith(f"{name} ")
    assert len(lines) == 3 * len(METRICS)


def test_the_worst_of_what_was_found_counts() -> None:
    """A loop that is broken is told before one that lets something through, and that before one that is not known."""
    assert sorted(Loop, key=lambda each: each.severity) == [
        Loop.WORKS,
        Loop.INCONCLUSIVE,
        Loop.MISJUDGED,
        Loop.BROKEN,
    ]
