"""What does an error code of S3 mean, and what should the user do?"""

from typing import Final

__all__ = ["CREDENTIALS_ADVICE", "ENDPOINT_ADVICE", "ERROR_TEXTS", "REGION_ADVICE"]

CREDENTIALS_ADVICE: Final = (
    "Give a profile (--profile, AWS_PROFILE), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. "
    "A public bucket needs none (--no-sign-request, storage option 'anon')"
)
"""Advice if no credentials are found."""
ENDPOINT_ADVICE: Final = "Check the endpoint (--endpoint-url, AWS_ENDPOINT_URL) and the network"
"""Advice if no server answers."""
REGION_ADVICE: Final = (
    "the bucket lies in another region or at another endpoint. Set AWS_DEFAULT_REGION to its region"
)
_RIGHTS_ADVICE: Final = "Check credentials, profile, endpoint and the rights of the account"
ERROR_TEXTS: Final = {
    "401": f"the server requires credentials. {CREDENTIALS_ADVICE}",
    "403": f"access is denied. {_RIGHTS_ADVICE}",
    "301": REGION_ADVICE,
    "AccessDenied": "access is denied. Check credentials, profile and the rights of the account",
    "AuthorizationHeaderMalformed": REGION_ADVICE,
    "ExpiredToken": "the credentials have expired. Get new ones",
    "InvalidAccessKeyId": "the server does not know the access key. Check profile and endpoint",
    "InvalidToken": "the session token is wrong. Get new credentials",
    "NoSuchBucket": "there is no such bucket. Check its name, profile and endpoint",
    "NoSuchKey": "there is no such object",
    "PermanentRedirect": REGION_ADVICE,
    "PreconditionFailed": "another writer was there first",
    "RequestTimeTooSkewed": "the clock of this machine is wrong. Set it",
    "SignatureDoesNotMatch": "the secret key is wrong. Check profile and endpoint",
    "TokenRefreshRequired": "the credentials have expired. Get new ones",
}
"""Text for each error code or status; some servers send no text of their own.

References
----------
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""
