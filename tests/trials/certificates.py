"""A certificate authority that lives as long as a trial."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    def __init__(self, folder):
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trials")])
        ca = builder(self._name, self._name, self._key.public_key()).add_extension(x509.BasicConstraints(True, None), True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(pem(ca.sign(self._key, hashes.SHA256())))

    def issue(self, *names, file):
        """Writes `file`.pem and `file`.key for these names, each in one rename, and returns the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        certificate = builder(subject, self._name, key.public_key()).add_extension(alternative, False).sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._replace(f"{file}.key", private)
        self._replace(f"{file}.pem", pem(certificate))
        return certificate.serial_number

    def _replace(self, name, content):
        beside = self._folder / f"{name}.new"
        beside.write_bytes(content)
        beside.rename(self._folder / name)


def builder(subject, issuer, public_key):
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)
