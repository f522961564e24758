# SPDX-License-Identifier: Apache-2.0
"""The contracts: one module each, from a caller's command line to a NetworkSpec, and the grammars that they share."""
