"""Imported by scripts that run with the genuine package: points it at the cloud under test.

Its client has one fixed address (a certificate), and its `ensure_ready` uses an argument of `NamedTemporaryFile` that
Python has from 3.12 on; both are set right here, nothing else of it is touched.
"""

import os
import sys
import tempfile

from vastai import AsyncClient
from vastai.serverless.client.client import _ServerlessBase

URL = os.environ["NP_URL"]
AsyncClient.SSL_CERT_URL = _ServerlessBase.SSL_CERT_URL = f"{URL}/static/jvastai_root.cer"

if sys.version_info < (3, 12):
    _plain = tempfile.NamedTemporaryFile

    def _with_the_newer_argument(*args, delete_on_close=True, **kwargs):
        return _plain(*args, **{**kwargs, "delete": kwargs.get("delete", True) and delete_on_close})

    tempfile.NamedTemporaryFile = _with_the_newer_argument
