"""Doctests that import a peer are skipped where it is not installed, unless BPTT_PEERS=required."""

import os

import pytest

PEERS = ("torch", "jax")


@pytest.fixture(autouse=True)
def _peers_of_a_doctest(request):
    doctest = getattr(request.node, "dtest", None)
    lines = [] if doctest is None else [line for example in doctest.examples for line in example.source.splitlines()]
    for peer in PEERS:
        if f"import {peer}" in lines and os.environ.get("BPTT_PEERS") != "required":
            pytest.importorskip(peer)
