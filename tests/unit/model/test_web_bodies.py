"""A running worker keeps its web applications: what makes them cannot be swapped, what they call can."""

from __future__ import annotations

from nanopod.model.bodies import obstacle

FILE = b"""
@app.asgi(path="/x")
def site():
    return Starlette(routes=[Route("/", hello)])

async def hello(request):
    return 1
"""


def test_makers_of_applications_are_not_swapped() -> None:
    assert obstacle(FILE, FILE.replace(b"return 1", b"return 2")) == ""
    assert "site makes a web application" in obstacle(FILE, FILE.replace(b'Route("/"', b'Route("/new"'))
    bare = FILE.replace(b'@app.asgi(path="/x")', b"@app.asgi")
    assert "site makes a web application" in obstacle(bare, bare.replace(b'Route("/"', b'Route("/new"'))
