# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: how a module reaches AWS."""

from __future__ import annotations


class ModuleDocFragment:
    """Options that amazon.aws adds to a module's own.

    They are documented here so that the documentation can be read where amazon.aws is not installed.
    """

    DOCUMENTATION = r"""
options:
  access_key:
    description:
      - Access key ID. Unset, boto3 searches its usual places, such as the environment, O(profile) and the instance's role.
      - Cannot be combined with O(profile).
    type: str
    aliases: [aws_access_key_id, aws_access_key]
  secret_key:
    description: Secret access key that belongs to O(access_key). Cannot be combined with O(profile).
    type: str
    aliases: [aws_secret_access_key, aws_secret_key]
  session_token:
    description: Session token of temporary credentials. Cannot be combined with O(profile).
    type: str
    aliases: [aws_session_token]
  profile:
    description: Profile of the AWS configuration.
    type: str
    aliases: [aws_profile]
  region:
    description: AWS region. Unset, the environment variable E(AWS_REGION) or the AWS configuration decides.
    type: str
    aliases: [aws_region]
  endpoint_url:
    description: URL that receives the requests in place of AWS's own endpoints.
    type: str
    aliases: [aws_endpoint_url]
  validate_certs:
    description: Whether TLS certificates are validated. To trust a private certificate authority, set O(aws_ca_bundle) instead of turning this off.
    type: bool
    default: true
  aws_ca_bundle:
    description: File with the certificates of the trusted certificate authorities.
    type: path
  aws_config:
    description: Settings of the botocore client, by the parameter names of C(botocore.config.Config).
    type: dict
  debug_botocore_endpoint_logs:
    description: Return the API calls that the module made, as C(resource_actions).
    type: bool
    default: false
requirements:
  - boto3 and botocore, in versions that the installed amazon.aws collection supports
attributes:
  action_group:
    description: Takes the defaults of the action group C(group/umccr.pcgr.aws), which also covers the AWS modules of C(amazon.aws) and C(community.aws).
    support: full
    membership: [umccr.pcgr.aws]
notes:
  - A call that AWS throttles is repeated, at growing and random intervals.
"""

    # Modules that know resources by our tag.
    TAGGED = r"""
options:
  name:
    description: Value of the tag C(umccr.pcgr) of the resources.
    type: str
    required: true
"""
