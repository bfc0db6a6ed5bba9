"""What S3's error codes mean, in plain words, for whichever client asked."""

from typing import Final

__all__ = ["CREDENTIALS", "ENDPOINT", "REFUSED", "REGION"]

CREDENTIALS: Final = (
    "Give a profile (--profile, AWS_PROFILE), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. "
    "A public bucket is read without (--no-sign-request, storage option 'anon')"
)
"""The next step where there are no credentials."""
ENDPOINT: Final = "Check the endpoint (--endpoint-url, AWS_ENDPOINT_URL) and the network"
"""The next step where no server answers."""
REGION: Final = (
    "the bucket lies in another region or at another endpoint. Set AWS_DEFAULT_REGION to its region"
)
_NO_RIGHTS: Final = "Check credentials, profile, endpoint and the rights of the account"
REFUSED: Final = {
    "401": f"credentials are asked for. {CREDENTIALS}",
    "403": f"access is denied. {_NO_RIGHTS}",
    "301": REGION,
    "AccessDenied": "access is denied. Check credentials, profile and the rights of the account",
    "AuthorizationHeaderMalformed": REGION,
    "ExpiredToken": "the credentials have expired. Get new ones",
    "InvalidAccessKeyId": "the server does not know the access key. Check profile and endpoint",
    "InvalidToken": "the session token is wrong. Get new credentials",
    "NoSuchBucket": "there is no such bucket. Check its name, profile and endpoint",
    "NoSuchKey": "there is no such object",
    "PermanentRedirect": REGION,
    "PreconditionFailed": "another writer was there first",
    "RequestTimeTooSkewed": "the clock of this machine is wrong. Set it",
    "SignatureDoesNotMatch": "the secret key is wrong. Check profile and endpoint",
    "TokenRefreshRequired": "the credentials have expired. Get new ones",
}
"""What S3's error codes mean; some servers send no text with them.

References
----------
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""
