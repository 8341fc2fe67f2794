"""Days come out of clocks and calendars, and their stamps compare on a circle."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from batv.day import CYCLE, SECONDS_A_DAY, Day, stamp_distance
from batv.errors import DayError


@pytest.mark.parametrize(
    ("seconds", "number"),
    [
        (0, 0),
        (0.0, 0),
        (86_399.999, 0),
        (86_400, 1),
        (-0.001, -1),
        (-86_400, -1),
        (1_795_391_999.999, 20_779),
        (1_795_392_000.0, 20_780),
        (21_000 * SECONDS_A_DAY, 21_000),
    ],
)
def test_a_day_begins_at_midnight_utc(seconds: float, number: int) -> None:
    """A tag signed a thousandth of a second before midnight belongs to the day that ends."""
    assert Day.at(seconds) == Day(number)


def test_a_day_reads_and_writes_as_the_calendar_has_it() -> None:
    """The arithmetic is our own, so it has to agree with a calendar on every day that can matter."""
    epoch = date(1970, 1, 1).toordinal()
    for ordinal in range(date(1896, 1, 1).toordinal(), date(2105, 1, 1).toordinal()):
        text = date.fromordinal(ordinal).isoformat()
        day = Day(ordinal - epoch)
        assert day.iso() == text
        assert Day.from_iso(text) == day


@pytest.mark.parametrize("text", ["0001-01-01", "1600-02-29", "1999-12-31", "2400-02-29", "9999-12-31"])
def test_far_days_agree_with_the_calendar(text: str) -> None:
    """Century years are leap years every 400 years."""
    day = Day.from_iso(text)
    assert day.number == date.fromisoformat(text).toordinal() - date(1970, 1, 1).toordinal()
    assert str(day) == day.iso() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "today",
        "2026-11-31",
        "2026-02-29",
        "1900-02-29",
        "2100-02-29",
        "2026-00-10",
        "2026-13-10",
        "2026-10-00",
        "2026-10-32",
        "2026-1-1",
        "26-10-10",
        "20261010",
        "2026/10/10",
        "10-10-2026",
        "2026-10-10\n",
        " 2026-10-10",
        "2026-10-10T00:00:00Z",
        "+026-10-10",
        "-026-10-10",
        "2026-+1-10",
        "2026-10- 1",
        "\u0662\u0660\u0662\u0666-10-10",
        "2026-10-\uff11\uff10",
    ],
)
def test_text_that_is_no_day_is_refused(text: str) -> None:
    """A mistyped day must not silently become another one."""
    with pytest.raises(DayError, match="is no day: write it as YYYY-MM-DD"):
        Day.from_iso(text)


@pytest.mark.parametrize(
    ("number", "stamp"),
    [(0, b"000"), (1, b"001"), (99, b"099"), (20_780, b"780"), (20_999, b"999"), (21_000, b"000"), (21_007, b"007")],
)
def test_a_stamp_is_the_day_modulo_1000_in_three_digits(number: int, stamp: bytes) -> None:
    """Leading zeros belong to the tag: without them it would have another length."""
    assert Day(number).stamp == stamp


def test_the_next_wrap_is_the_first_of_july_2027() -> None:
    """Administrators are told this date."""
    assert Day.from_iso("2027-07-01").stamp == b"000"
    assert Day.from_iso("2027-06-30").stamp == b"999"
    assert Day.from_iso("2027-06-30").stamp_after(7) == b"006"
    assert datetime.fromtimestamp(21_000 * SECONDS_A_DAY, UTC).date() == date(2027, 7, 1)


def test_days_are_counted_and_ordered() -> None:
    """Key roles rest on the order of days and the distance between them."""
    day = Day.from_iso("2026-12-30")
    assert (day + 3).iso() == "2027-01-02"
    assert (day + -1).iso() == "2026-12-29"
    assert (day + 3) - day == 3
    assert day - (day + 3) == -3
    assert day < day + 1
    assert max(day, day + 1) == day + 1


def test_a_stamp_is_as_many_days_ahead_as_it_takes_to_reach_it() -> None:
    """On each day of a cycle every stamp has its own distance, 0 for today's, 999 for yesterday's."""
    for number in range(20_500, 20_500 + CYCLE):
        today = Day(number)
        assert stamp_distance(today.stamp, today) == 0
        assert stamp_distance((today + -1).stamp, today) == 999
    for number in range(20_985, 21_015):
        today = Day(number)
        assert [stamp_distance((today + ahead).stamp, today) for ahead in range(CYCLE)] == list(range(CYCLE))
