# SPDX-License-Identifier: Apache-2.0
"""bridge: bridge networks of rootless Podman, in the namespace that containers share with one helper.

netavark_plugin  what netavark starts for each container that joins or leaves
bridge_network   the bridge, and a container's place on it
rootlessport     what Podman 5 starts for a container's ports
meeting          where these two meet the helper, and their words
meeting_server   the helper's side of it
claims           to which container a port of the host leads
"""
