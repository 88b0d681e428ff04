"""The table of schemes, and all code that reads it."""

from __future__ import annotations

import pytest
from pipeq import checks
from pipeq.contract import schemes
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Output, Ref

#: A typical URI of each scheme.
URIS = {"file": "file:///folder/a", **{name: f"{name}://first/a" for name in schemes.SCHEMES if name != "file"}}


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_every_scheme_makes_a_reference(name: str) -> None:
    assert Ref(URIS[name]).uri == URIS[name]
    assert Ref.of(URIS[name]).uri == URIS[name]


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_output_goes_where_the_table_says(name: str) -> None:
    if schemes.SCHEMES[name].writable:
        assert Output(uri=URIS[name]).uri == URIS[name]
        assert checks.output(URIS[name], many=False) == {"uri": URIS[name]}
    else:
        with pytest.raises(PipeqError, match=f"is not an {schemes.listed(schemes.writable())} URI"):
            Output(uri=URIS[name])
        with pytest.raises(PipeqError) as error:
            checks.output(URIS[name], many=False)
        assert error.value.code == ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize("uri", ["s4://a/b", "s3", "file", "s3:/a/b", "", "://a", "http://a/b", "S3://a/b"])
def test_what_is_of_no_scheme_is_refused_with_all_that_there_are(uri: str) -> None:
    with pytest.raises(PipeqError) as error:
        Ref(uri)
    assert error.value.code == ErrorCode.INVALID_INPUT
    assert schemes.listed(schemes.known()) in error.value.message


def test_schemes_in_a_sentence() -> None:
    assert schemes.listed(["s3"]) == "s3://"
    assert schemes.listed(["s3", "file"]) == "s3:// or file://"
    assert schemes.listed(["s3", "file", "https"]) == "s3://, file:// or https://"
