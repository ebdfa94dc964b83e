"""Lookup s3_presigned_urls: the bucket's region is found although S3 throttles."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.awsrequest
import botocore.httpsession
import pytest

from support.module_runner import load

NO_BODY: Any = SimpleNamespace(stream=lambda *_unused, **_more: iter(()))


def test_a_throttled_bucket_still_names_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    answers = iter([503] * 6 + [200])
    asked: list[str] = []

    def send(_session: Any, request: Any) -> Any:
        asked.append(request.method)
        headers = {"x-amz-bucket-region": "eu-west-2"} if (status := next(answers)) == 200 else {}
        return botocore.awsrequest.AWSResponse(request.url, status, headers, NO_BODY)

    monkeypatch.setattr(botocore.httpsession.URLLib3Session, "send", send)
    (url,) = load("lookup.s3_presigned_urls").sign("s3://bucket/folder", ["a"]).values()
    assert asked == ["HEAD"] * 7
    assert "/eu-west-2/s3/" in parse_qs(urlsplit(url).query)["X-Amz-Credential"][0]
