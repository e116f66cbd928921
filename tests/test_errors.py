"""All errors that a user can fix have one base class."""

import calumma.errors


def test_every_error_is_a_calumma_error() -> None:
    classes = [value for value in vars(calumma.errors).values() if isinstance(value, type)]
    assert len(classes) > 10
    assert all(issubclass(value, calumma.errors.CalummaError) for value in classes)
