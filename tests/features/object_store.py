"""A server on this machine that speaks S3, for stores that lie in a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import s3fs
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

BUCKET = "features"


@contextmanager
def bucket() -> Iterator[str]:
    """The URL of an empty bucket, which this process and those that it starts can reach."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # it would hand out one that knows the server before this one
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


def objects_below(prefix: str) -> dict[str, bytes]:
    """Every object below bucket/prefix, seen without our own code."""
    client = boto3.client("s3")
    keys = [found["Key"] for found in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix + "/").get("Contents", ())]
    return {
        key.removeprefix(prefix + "/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in sorted(keys)
    }
