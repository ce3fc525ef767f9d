"""What every detector keeps. Subclass it in `tests/security/detectors/test_<name>.py`."""

import time
from typing import ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.detectors import Detector, detectors, names
from security.detectors.base import ScreenPolicy

# Subclasses run the same test on other data: an example that was kept for one is merely tried by the next.
_shared = settings(suppress_health_check=[HealthCheck.differing_executors])

_LONG = 1_000_000  # characters; what is quadratic takes minutes for it


class DetectorContract:
    """`held` are texts that are found, whole; `clean` such that nothing is; `hostile` what a million characters of are
    the worst for the detector: its beginnings without an end.
    """

    name: ClassVar[str]
    policy: ClassVar[ScreenPolicy]
    held: ClassVar[list[str]]
    clean: ClassVar[list[str]]
    hostile: ClassVar[list[str]]

    @property
    def detector(self) -> Detector:
        return next(detector for detector in detectors() if detector.name == self.name)

    def found(self, text: str) -> list[str]:
        return [text[hit.start : hit.end] for hit in self.detector.find(text, self.policy)]

    def without(self, text: str) -> str:
        for piece in self.found(text):
            text = text.replace(piece, self.detector.replacement)
        return text

    def test_it_is_registered_under_its_module_name(self):
        assert self.name in names()
        assert self.detector.find.__module__ == f"security.detectors.{self.name}"

    def test_it_finds_what_it_is_for(self):
        assert {text: self.found(text) for text in self.held} == {text: [text] for text in self.held}

    def test_it_finds_nothing_else(self):
        assert {text: self.found(text) for text in self.clean} == {text: [] for text in self.clean}

    def test_nothing_is_in_an_empty_text(self):
        assert self.found("") == []

    @_shared
    @given(before=st.text(), after=st.text(), data=st.data())
    def test_it_finds_it_wherever_it_stands(self, before, after, data):
        held = data.draw(st.sampled_from(self.held))
        text = f"{before}\n{held}\n{after}"
        hits = self.detector.find(text, self.policy)
        assert any(hit.start <= len(before) + 1 and hit.end >= len(before) + 1 + len(held) for hit in hits)

    @_shared
    @given(st.data())
    def test_spans_are_inside_the_text(self, data):
        pieces = st.one_of(st.text(), st.sampled_from([*self.held, *self.hostile]))
        text = "".join(data.draw(st.lists(pieces)))
        assert all(0 <= hit.start < hit.end <= len(text) for hit in self.detector.find(text, self.policy))

    def test_what_is_sanitised_is_clean(self):
        assert [self.found(self.without(f"x {text} y")) for text in self.held] == [[] for _ in self.held]

    def test_its_time_is_linear(self):
        for piece in [*self.hostile, *self.held]:
            text = (piece * (_LONG // len(piece) + 1))[:_LONG]
            started = time.process_time()
            self.detector.find(text, self.policy)
            assert time.process_time() - started < 3, f"{piece[:20]!r} takes too long"
