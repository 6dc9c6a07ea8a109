"""Validate a crate without network: the validator finds the crate's vocabulary in its cache, from the package `rocrate`.

Run by the Python of an environment that has `roc-validator`: `validate_crate.py CRATE CACHE`. Prints what is wrong, and
nothing if the crate is a Workflow Run Crate.
"""

import importlib.util
import io
import sys
from pathlib import Path

from requests import PreparedRequest, Response
from requests_cache import CachedSession
from rocrate_validator import models, services
from urllib3 import HTTPResponse

VOCABULARY = "https://w3id.org/ro/crate/1.1/context"
PROFILE = "workflow-run-crate-0.5"


def fill_cache(cache: str) -> None:
    """Put the vocabulary into the validator's cache, as if it had been fetched."""
    package = importlib.util.find_spec("rocrate").submodule_search_locations[0]
    # The package has version 1.3; in 1.1 the terms of Bioschemas, which the profile asks for, have other addresses.
    newer = (Path(package) / "data" / "ro-crate.jsonld").read_text()
    content = newer.replace("https://bioschemas.org/terms/", "https://bioschemas.org/").encode()
    request = PreparedRequest()
    request.prepare("GET", VOCABULARY, headers={"Accept": "application/ld+json, application/json"})
    response = Response()
    response.status_code, response.url, response.request = 200, VOCABULARY, request
    response.headers["Content-Type"] = "application/ld+json"
    response._content = content
    response.raw = HTTPResponse(body=io.BytesIO(content), status=200, headers=response.headers, preload_content=False)
    session = CachedSession(cache_name=cache, backend="sqlite", expire_after=-1)
    session.cache.save_response(response, session.cache.create_key(request))


def main(crate: str, cache: str) -> None:
    """Print what keeps a crate from being a Workflow Run Crate."""
    fill_cache(cache)
    settings = services.ValidationSettings(
        rocrate_uri=crate,
        profile_identifier=PROFILE,
        requirement_severity=models.Severity.REQUIRED,
        cache_path=cache,
        offline=True,
    )
    for issue in services.validate(settings).get_issues():
        print(f"{issue.check.identifier}: {issue.message}")


main(*sys.argv[1:])
