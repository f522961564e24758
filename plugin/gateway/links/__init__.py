# SPDX-License-Identifier: Apache-2.0
"""The kinds of link by which guests of a virtual network come, and the switch where several do."""
