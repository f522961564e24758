# SPDX-License-Identifier: Apache-2.0
"""What is served at the gateway of a virtual network (`gvproxy`): names, leases, the HTTP API, forwards by SSH.

A virtual network is made up: its subnet, its gateway and the names in it are ours alone, unlike with passt and pasta,
whose guests see the host's own.
"""
