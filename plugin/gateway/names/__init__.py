# SPDX-License-Identifier: Apache-2.0
"""What a virtual network is told of names: its zones, and the host's resolvers for all else."""
