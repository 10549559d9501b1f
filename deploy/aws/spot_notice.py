"""Tell Ray when AWS is about to take this spot instance back, so that its work moves to other nodes.

AWS gives two minutes' notice in the instance's metadata, which Ray does not read. `python spot_notice.py HEAD:6379`
runs on every worker node, and ends once Ray has accepted the notice.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
EVERY_S = float(os.environ.get("SPOT_NOTICE_EVERY_S", "5"))
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request_metadata(path: str, method: str, headers: dict[str, str]) -> str:
    """Return the answer of the instance's metadata service. OSError: it does not answer."""
    request = urllib.request.Request(f"{METADATA}/latest/{path}", method=method, headers=headers)
    with DIRECT.open(request, timeout=2) as answer:
        return str(answer.read().decode())


def seconds_left(now: datetime) -> int | None:
    """Return the seconds until the instance is taken back; None without a notice. OSError: no metadata."""
    token = request_metadata("api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    headers = {"X-aws-ec2-metadata-token": token}
    try:
        notice = json.loads(request_metadata("meta-data/spot/instance-action", "GET", headers))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return max(0, int((datetime.fromisoformat(notice["time"]) - now).total_seconds()))


def drain(address: str, seconds: int) -> bool:
    """Drain this node in the cluster at `address`; return whether Ray accepted it."""
    words = ["ray", "drain-node", "--address", address, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "AWS takes the spot instance back", "--deadline-remaining-seconds", str(seconds)]
    return subprocess.run(words, env=os.environ | {"RAY_ADDRESS": address}, check=False).returncode == 0


def watch(address: str) -> None:
    """Poll for a notice, and return once Ray at `address` has accepted it."""
    while True:
        try:
            left = seconds_left(datetime.now(UTC))
        except (OSError, ValueError, KeyError) as error:  # may succeed the next time
            sys.stderr.write(f"spot_notice: {error}\n")
            left = None
        if left is not None and drain(address, left):
            return
        time.sleep(EVERY_S)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("spot_notice: use it with the address of Ray's head: spot_notice.py HEAD:6379")
    watch(sys.argv[1])
