"""Where texts and a key may be sent, and what may be sent as a key."""

from __future__ import annotations

import ipaddress
import os

import httpx2

from prefopt.errors import UsageError


def check_url(url: str) -> str:
    """``url`` without a trailing slash, if texts and a key may be sent there.

    Raises:
        UsageError: If it is neither https nor this machine, carries a password, or is a link-local address.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError, ValueError):
        raise UsageError("--base-url: not a URL; write such as https://host/v1") from None
    if parsed.userinfo:
        raise UsageError("--base-url: holds a user name or password; keys belong in an environment variable")
    host = parsed.host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    here = host == "localhost" or (address is not None and address.is_loopback)
    if not host or not (parsed.scheme == "https" or (parsed.scheme == "http" and here)):
        raise UsageError(f"--base-url {parsed.scheme}://{host}: must be https, or http to this machine")
    if address is not None and (address.is_link_local or address.is_unspecified or address.is_multicast):
        raise UsageError(f"--base-url: {host} is not an address that a judge can have")
    if parsed.query or parsed.fragment:
        raise UsageError("--base-url: holds a query or fragment; write such as https://host/v1")
    return str(parsed).rstrip("/")


def key_from_environment(name: str) -> str | None:
    """The key in an environment variable, or None where it is not set.

    Raises:
        UsageError: If it holds a character that cannot be sent in a header.
    """
    key = os.environ.get(name, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise UsageError(
            f"the environment variable {name} holds a character that no key has (a space, a line break or one that is "
            "not ASCII); copy the key again"
        )
    return key or None
