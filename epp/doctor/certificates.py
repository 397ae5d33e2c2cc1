"""Whether a certificate is one that its clients can accept."""

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509

from epp.doctor.findings import Findings

_SOON = timedelta(days=14)


def check(find: Findings, subject: str, shown: x509.Certificate, names: Iterable[str], now: datetime) -> None:
    """Looks at dates and names.

    Args:
        find: takes what is found.
        subject: whose it is.
        shown: the certificate.
        names: host names or addresses by which its clients connect; it should be for all of them.
        now: the time, with its zone.
    """
    ends = shown.not_valid_after_utc
    if ends <= now or shown.not_valid_before_utc > now:
        remedy = "renew it; KServe does so when its Secret is deleted"
        message = f"its certificate is valid from {shown.not_valid_before_utc:%F} to {ends:%F} only"
        find.broken("tls.dates", subject, message, remedy)
    elif ends - now < _SOON:
        find.warning("tls.dates", subject, f"its certificate ends on {ends:%F}", "see that somebody renews it")
    else:
        find.ok("tls.dates", subject, f"its certificate is valid until {ends:%F}")
    known = _names(shown)
    missing = [name for name in names if not any(_covers(pattern, name) for pattern in known)]
    if missing:
        message = f"its certificate is for {', '.join(sorted(known)) or 'no name'}, not for {', '.join(missing)}"
        remedy = "who checks it refuses it: add the name, or leave the check out (insecureSkipVerify)"
        find.warning("tls.names", subject, message, remedy)
    else:
        find.ok("tls.names", subject, "its certificate is for its names")


def _names(shown: x509.Certificate) -> set[str]:
    try:
        extension = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    names = set(extension.get_values_for_type(x509.DNSName))
    return names | {str(address) for address in extension.get_values_for_type(x509.IPAddress)}


def _covers(pattern: str, name: str) -> bool:
    try:
        return ipaddress.ip_address(pattern) == ipaddress.ip_address(name)
    except ValueError:
        if pattern.startswith("*."):
            return name.partition(".")[2].lower() == pattern[2:].lower()
        return pattern.lower() == name.lower()
