# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup plugin: presigned URLs of files in an S3 bucket."""

from __future__ import annotations

DOCUMENTATION = r"""
name: s3_presigned_urls
short_description: Presign URLs of files in an S3 bucket
version_added: "1.0.0"
description:
  - Presigns an C(https) URL for each file, so that hosts which download from an C(s3://) mirror need neither credentials nor an S3 client.
  - The signatures are made on the controller, with the credentials that boto3 finds there (and C(AWS_ENDPOINT_URL), for other stores than AWS's).
    They are valid for seven days, or until temporary credentials expire. Without credentials the URLs are unsigned, as a public bucket accepts them.
author: University of Melbourne Centre for Cancer Research (@umccr)
options:
  _terms:
    description: Folder, such as V(s3://bucket/pcgr). For anything but C(s3://) the answer is empty.
    type: list
    elements: str
    required: true
  files:
    description: Names of files in the folder.
    type: list
    elements: str
    required: true
requirements:
  - boto3
"""

EXAMPLES = r"""
- name: Install the reference data from a bucket
  umccr.pcgr.databundle:
    mirror_url: s3://my-mirror/pcgr
    signed: "{{ lookup('umccr.pcgr.s3_presigned_urls', 's3://my-mirror/pcgr', files=['SHA256SUMS', 'pcgr_ref_data.20260620.grch38.tgz']) }}"
    root: /mnt/pcgr
    release: "{{ lookup('umccr.pcgr.release', '2.3.2') }}"
    assemblies: [grch38]
"""

RETURN = r"""
_raw:
  description: Presigned URL by C(s3://) URL.
  type: list
  elements: dict
"""

from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import address

try:
    import boto3
    import botocore
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    boto3 = None  # type: ignore[assignment]

SECONDS = 7 * 24 * 3600  # the longest that S3 allows
NOT_FOUND = "404"


def sign(folder: str, files: list[str]) -> dict[str, str]:
    """Presigned URL by `s3://` URL of each of `files` in `folder`; raises AnsibleError."""
    if not folder.startswith("s3://"):
        return {}
    if boto3 is None:
        raise AnsibleError(f"{folder}: the Python library boto3 is missing on the controller")
    parts = urlsplit(folder)
    try:
        session = boto3.Session()
        config = Config(signature_version="s3v4" if session.get_credentials() else botocore.UNSIGNED)
        client = session.client("s3", config=config)
        if (region := region_of(client, parts.netloc)) not in (None, client.meta.region_name):
            client = session.client("s3", region_name=region, config=config)
        signed = {}
        for name in files:
            url = address(folder, name)
            where = {"Bucket": parts.netloc, "Key": urlsplit(url).path.lstrip("/")}
            signed[url] = client.generate_presigned_url("get_object", Params=where, ExpiresIn=SECONDS)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise AnsibleError(f"{folder}: {error}") from error
    return signed


def region_of(client: Any, bucket: str) -> str | None:
    """The region of a bucket, for which its URLs must be signed. S3 names it in every answer about the bucket, refusals included."""
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
        if answer["Error"]["Code"] == NOT_FOUND:
            raise AnsibleError(f"s3://{bucket}: no such bucket") from error
    region: str | None = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    return region


class LookupModule(LookupBase):  # type: ignore[misc]  # ansible-core ships no types
    """Lookup ``umccr.pcgr.s3_presigned_urls``."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, str]]:
        """Return one mapping per folder."""
        self.set_options(var_options=variables, direct=kwargs)
        files = self.get_option("files")
        return [sign(folder or "", files) for folder in terms]
