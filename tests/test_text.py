from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from facedata.text import natural_key, natural_sort, shown_url


def test_numbers_count_as_numbers() -> None:
    assert natural_sort(["id_10", "id_2", "id_1", "a", "id_02", "B"]) == ["B", "a", "id_1", "id_02", "id_2", "id_10"]
    assert natural_sort(["x10y2", "x9y10", "x10y10"]) == ["x9y10", "x10y2", "x10y10"]
    assert natural_sort(["12_10.jpg", "12_9.jpg", "12_100.jpg"]) == ["12_9.jpg", "12_10.jpg", "12_100.jpg"]


NAMES = st.lists(st.text("01239_ab.", max_size=6) | st.from_regex(r"7_(0|[1-9]\d{0,3})\.jpg", fullmatch=True))


@given(NAMES)
def test_the_quick_way_gives_the_same_order(names: list[str]) -> None:
    assert natural_sort(names) == sorted(names, key=natural_key)


@given(st.lists(st.integers(0, 10**12), min_size=2, unique=True), st.sampled_from(["id_{}", "3_{}.jpg", "{}"]))
def test_names_that_differ_in_a_number_are_in_its_order(numbers: list[int], pattern: str) -> None:
    names = [pattern.format(number) for number in sorted(numbers)]
    assert natural_sort(pattern.format(number) for number in numbers) == names


def test_a_url_is_shown_without_what_is_secret_or_harmful() -> None:
    assert shown_url("https://me:secret@example.org:8/a?b") == "https://example.org:8/a?b"
    assert "\x1b" not in shown_url("https://example.org/\x1b[2J")
    assert shown_url("http://[bad") == "http://[bad"
