"""The account of columns: counts, lines, JSON and the refusal of what is left over."""

import pytest

from calumma.documents.column_account import ColumnAccount
from calumma.errors import DocumentError


def filled() -> ColumnAccount:
    account = ColumnAccount()
    account.add("text", "caption", 1200)
    account.add("image", "jpg")
    account.add("not read", "embedding", 2, "a list of float")
    account.add("left over", "note", 1, "text")
    account.add("left over", "a.b (c)", 1, "an image")
    return account


def test_there_is_one_line_for_each_use() -> None:
    assert list(filled().lines()) == [
        "read as images: jpg 1",
        "read as text: caption 1,200",
        "not read: embedding (a list of float) 2",
        "LEFT OVER: a.b (c) (an image) 1, note (text) 1",
    ]


def test_accounts_are_added_and_saved() -> None:
    account = filled()
    account.update(filled())
    account.add("image", "jpg", -2)
    assert account.total("text") == 2400
    assert account.to_json()["left over"] == {"a.b (c) (an image)": 2, "note (text)": 2}
    assert "image" not in account.to_json()
    assert ColumnAccount.from_json(account.to_json()) == account


def test_many_columns_are_counted_together() -> None:
    account = ColumnAccount()
    for number in range(1000):
        account.add("attribute", f"column {number}")
    assert account.total("attribute") == 1000
    assert account.to_json()["attribute"]["other columns"] == 744
    [line] = account.lines()
    assert line.endswith("and 241 more")


def test_left_over_columns_are_refused_by_name() -> None:
    with pytest.raises(DocumentError) as caught:
        filled().require_complete("d.jsonl:1")
    assert str(caught.value) == (
        "d.jsonl:1: left over: 'note' (text), 'a.b (c)' (an image); expected every image and text in the document. "
        "Rename the columns as docs/documents.md says, or pass --ignore-columns note,a.b (c)."
    )
    ColumnAccount().require_complete("d.jsonl:1")
