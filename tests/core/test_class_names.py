"""Names of classes: which class a word means, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gebm_kit.core.class_names import class_names_of, labels_of_word, labels_of_words, titled
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import GebmKitWarning

CLOTHES = ("t-shirt", "trouser", "coat, long", "-1", "Ünder wear")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("trouser", [1]),
        ("trouser,t-shirt", [1, 0]),
        ("trouser, 0 ,2", [1, 0, 2]),
        ("coat, long", [2]),
        ("-1", [3]),
        ("Ünder wear", [4]),
        ("7", [7]),
        ("all", "all"),
    ],
)
def test_words(word: str, expected: list[int] | str) -> None:
    assert labels_of_word(word, CLOTHES) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trousers", "--class is 'trousers', and there is no class 'trousers'; did you mean trouser"),
        ("Trouser", "there is no class 'Trouser'; did you mean trouser"),
        ("trouser,long", "there is no class 'long'"),
        ("trouser,", "--class is 'trouser,'; allowed: a class such as 7"),
        ("", "--class is ''"),
        ("-2", "there is no class '-2'"),
        ("1.0", "there is no class '1.0'"),
        ("٣", "there is no class '٣'"),  # a digit, but not of this alphabet
    ],
)
def test_words_that_mean_no_class(word: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        labels_of_word(word, CLOTHES)
    assert message in str(caught.value)


def test_several_words_are_the_classes_of_each() -> None:
    assert labels_of_words(["trouser", "coat, long", "0,1"], CLOTHES) == [1, 2, 0, 1]
    assert labels_of_words(["all"], CLOTHES) == "all"
    with pytest.raises(UsageError, match="--class is given 2 times, once as 'all'"):
        labels_of_words(["3", "all"], CLOTHES)


def test_a_name_with_a_comma_in_a_list_of_names_is_told_how_it_is_given() -> None:
    with pytest.raises(UsageError) as caught:
        labels_of_words(["trouser,coat, long"], CLOTHES)
    assert "with a --class of its own" in caught.value.hint


@pytest.mark.parametrize(
    ("word", "names"), [("all", ("some", "all")), ("a,b", ("a", "b", "a,b")), ("0,b", ("0,b", "b"))]
)
def test_words_with_two_readings_are_refused(word: str, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="can be read in two ways") as caught:
        labels_of_word(word, names)
    assert f"that class is {names.index(word)}" in caught.value.hint


def test_a_number_means_the_index_and_a_name_that_is_another_number_is_pointed_out() -> None:
    with pytest.warns(GebmKitWarning, match="--class 1 is the index 1, the class called '2'"):
        assert labels_of_word("1", ("1", "2", "3")) == [1]


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_index_and_name_agree() -> None:
    assert labels_of_word("1", ("0", "1", "2")) == [1]
    assert labels_of_word("7", ("1", "2")) == [7]  # which `wanted_labels` refuses


def test_names_of_datasets() -> None:
    assert class_names_of(SimpleNamespace(num_classes=2)) is None
    assert class_names_of(SimpleNamespace(num_classes=2, class_names=("0", "1"))) is None
    assert class_names_of(SimpleNamespace(num_classes=2, class_names=["a", "1"])) == ("a", "1")
    assert (titled(1, None), titled(1, ("a", "b"))) == ("1", "1 (b)")
