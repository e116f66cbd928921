"""Judgments are stored, replaced and counted, and items assigned."""

import threading
from collections import Counter
from pathlib import Path

import pytest

from calumma.compare.judgment_store import STORE_NAME, Judgment, JudgmentStore
from calumma.compare.study import StudyItem
from calumma.errors import FileError

ITEMS = [StudyItem("absolute", str(number), ("ours",)) for number in range(4)]


def test_judgments_come_back_and_the_last_one_counts(tmp_path: Path) -> None:
    store = JudgmentStore(tmp_path)
    first = Judgment("i", "ann", {"q": "yes", "r": "no"}, swapped=True, seconds=2.5)
    store.record(Judgment("i", "ann", {"q": "no", "r": "no"}))
    store.record(first)
    store.record(Judgment("i", "bob", {"q": "no"}))
    store.close()
    again = JudgmentStore(tmp_path)
    assert again.judgments() == [first, Judgment("i", "bob", {"q": "no"})]
    assert (again.num_judged("ann"), again.num_judged("eve")) == (1, 0)
    again.close()


def test_an_item_is_assigned_again_until_it_is_judged(tmp_path: Path) -> None:
    store = JudgmentStore(tmp_path)
    given = store.claim(ITEMS, "ann", 1)
    assert store.claim(ITEMS, "ann", 1) == given
    other = store.claim(ITEMS, "bob", 1)
    assert other is not None and other != given
    store.close()


def test_started_items_come_first_and_are_judged_once_per_annotator(tmp_path: Path) -> None:
    store = JudgmentStore(tmp_path)
    for item in ITEMS[2:]:
        store.record(Judgment(item.key, "ann", {"q": "yes"}))
    assert store.claim(ITEMS, "bob", 2) == ITEMS[2]
    store.record(Judgment(ITEMS[2].key, "bob", {"q": "yes"}))
    assert store.claim(ITEMS, "eve", 2) == ITEMS[3]
    store.close()


def test_many_annotators_at_once_fill_each_item_exactly(tmp_path: Path) -> None:
    store = JudgmentStore(tmp_path)

    def judge(name: str) -> None:
        while (item := store.claim(ITEMS, name, 3)) is not None:
            store.record(Judgment(item.key, name, {"q": "yes"}))

    threads = [threading.Thread(target=judge, args=(f"a{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(judgment.item for judgment in store.judgments()) == {item.key: 3 for item in ITEMS}
    store.close()


def test_a_claim_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JudgmentStore(tmp_path)
    assert store.claim(ITEMS[:1], "ann", 1) == ITEMS[0]
    assert store.claim(ITEMS[:1], "bob", 1) is None
    monkeypatch.setattr("calumma.compare.judgment_store.CLAIM_SECONDS", -1.0)
    assert store.claim(ITEMS[:1], "bob", 1) == ITEMS[0]
    store.close()


def test_an_invalid_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / STORE_NAME).write_text("nothing of SQLite " * 100)
    with pytest.raises(FileError) as caught:
        JudgmentStore(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / STORE_NAME}: not a valid SQLite file (file is not a database); expected the "
        "judgments of this study. Restore a copy, or move it away to start again."
    )
