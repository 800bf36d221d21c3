"""How other libraries reach the same stores: endpoint, region and credentials as the environment says them."""

import os


def object_store_options(uri: str) -> dict[str, str]:
    """Return the options by which libraries on the Rust crate `object_store` reach what fsspec reaches by itself.

    Credentials come from where botocore finds them: keys, profile, process or role. They are those of this moment.

    Args:
        uri: of any store; only S3 needs any.
    """
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    import botocore.session

    session = botocore.session.get_session()
    options = {"aws_region": session.get_config_variable("region") or "us-east-1"}
    credentials = session.get_credentials()
    if credentials is not None:
        keys = credentials.get_frozen_credentials()
        options |= {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
        options |= {"aws_session_token": keys.token} if keys.token else {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options |= {"aws_endpoint": endpoint, "aws_virtual_hosted_style_request": "false"}
        options |= {"aws_allow_http": "true"} if endpoint.startswith("http://") else {}
    return options
