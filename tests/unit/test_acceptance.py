# SPDX-License-Identifier: Apache-2.0
"""What a drop-in for passt must do at the least, line by line, and the tests that show it.

For who wants to know whether something is held, and where. A test of the list that is renamed or gone fails here.
Adversary: nobody.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent

# What is asked for, and FILE: TEST ... that show it.
ACCEPTANCE = {
    "the command lines of muvm, libkrun, crun, libvirt and QEMU, short options in one word and long ones cut short": """
        unit/test_passt_options.py: test_the_command_line_of_every_caller_is_understood
        unit/test_getopt.py: test_passt_options_parse_as_glibc_parses_them
        contract/test_callers_stream.py: test_muvm test_crun_with_krun test_qemus_own_netdev test_libvirt
        contract/test_callers_krun.py: test_the_lease_is_the_hosts_own_address""",
    "forwards: ranges and where they lead, brackets, all, exclusions, interfaces": """
        unit/test_forward_spec.py: test_ports_and_where_they_lead test_all_is_what_the_host_does_not_use_itself
        unit/test_forward_spec.py: test_where_a_forward_listens test_targets_with_an_address""",
    "a daemon by default, whose parent exits with 0 when it is ready, and whose pid file is complete before": """
        contract/test_processes_start.py: test_the_daemon_is_ready_when_the_launched_process_exits
        contract/test_processes_start.py: test_a_daemon_holds_nothing_of_its_caller""",
    "in the foreground with -f, silent with -q": """
        contract/test_processes_start.py: test_start_up_is_told_and_quiet_is_quiet
        contract/test_processes_start.py: test_the_pid_file_of_a_foreground_helper_is_its_own_pid""",
    "status 0 when the caller closes its socket, and at SIGTERM": """
        contract/test_processes_end.py: test_one_off_ends_with_its_client test_a_signal_ends_the_whole_helper
        contract/test_callers_krun.py: test_the_helper_never_hangs_up_and_ends_with_its_vm""",
    "frames on a stream, in any pieces, of 60 to 65535 bytes, short ones padded": """
        unit/test_link_stream.py: test_frames_arrive_whole_however_the_stream_is_cut test_short_frames_are_padded
        unit/test_link_stream.py: test_frames_leave_whole_however_slowly_they_are_read
        unit/test_link_stream.py: test_the_shortest_and_the_largest_frame_pass""",
    "segments of 64 KiB and wrong checksums from the guest are taken, complete checksums are sent": """
        script/test_to_peer.py: test_super_segments_go_to_the_socket_in_one_piece
        contract/test_callers_krun.py: test_bytes_go_both_ways_at_once_to_a_host_far_away
        contract/test_stream_frames.py: test_wrong_checksums_of_a_connection_are_taken
        contract/test_stream_frames.py: test_the_longest_segment_of_one_frame_goes_both_ways
        script/test_segments.py: test_the_guest_reads_what_scapy_writes""",
    "DHCP at once, an ACK for a DISCOVER with rapid commit, no pads, no more than 548 bytes": """
        unit/test_dhcp.py: test_rapid_commit_gets_an_ack_at_once test_every_reply_fits_a_buffer_of_576_bytes
        unit/test_dhcp.py: test_muvm_is_configured_by_one_reply
        contract/test_dhcp_clients.py: test_a_client_of_dhcp_takes_all_that_it_is_given
        contract/test_callers_krun.py: test_the_lease_is_the_hosts_own_address""",
    "a router advertisement for each solicitation": """
        unit/test_ra.py: test_a_solicitation_is_answered_to_its_source
        guest/test_configuration.py:
            test_autoconfiguration_gives_an_address_in_the_prefix_and_a_link_local_router""",
    "the addresses of local mode": """
        unit/test_netview.py: test_a_host_without_network_gives_local_addresses
        contract/test_callers_krun.py:
            test_the_host_of_a_namespace_without_any_interface_is_reached_by_its_guest""",
    "the gateway is the host's loopback": """
        contract/test_callers_krun.py: test_the_gateway_is_the_hosts_own_loopback_unless_told_otherwise
        script/test_datagrams.py: test_the_gateway_is_the_hosts_loopback""",
    "a resolver on loopback is reached": """
        guest/test_resolver.py: test_a_resolver_on_loopback_is_offered_as_the_gateway_and_answers
        contract/test_callers_krun.py: test_a_name_is_looked_up""",
    "the source port of UDP is kept": """
        contract/test_callers_krun.py: test_datagrams_come_back_to_the_port_that_sent_them
        guest/test_udp_and_ping.py: test_many_datagrams_of_one_socket_keep_their_order_and_their_port""",
    "the requests of vhost-user, and an answer to those that nobody knows": """
        unit/test_vhost_user_messages.py: test_the_table_has_one_row_for_each_request
        unit/test_vhost_user_session.py: test_what_is_not_implemented_is_answered_where_that_can_be
        unit/test_vhost_user_session.py: test_an_unheard_of_request_ends_the_connection_unless_it_can_be_told
        unit/test_vhost_user_hostile.py: test_after_any_front_end_a_correct_one_is_served""",
    "the state of the device and the dirty log, for migration": """
        contract/test_migration.py: test_connections_go_on_at_another_host
        contract/test_migration_qemu.py:
        unit/test_dirty_log.py:""",
}


@cache
def names_of(file: str) -> frozenset[str]:
    """The tests of one file."""
    found = ast.parse((TESTS / file).read_text()).body
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


@pytest.mark.parametrize("asked", ACCEPTANCE)
def test_what_is_asked_of_a_drop_in_has_its_tests(asked: str) -> None:
    """A file that is named without a test stands for all of its own."""
    file, shown = "", 0
    for word in ACCEPTANCE[asked].split():
        if word.endswith(":"):
            file = word.removesuffix(":")
            shown += bool(names_of(file))
        else:
            assert word in names_of(file), f"{file} has no {word}"
    assert shown
