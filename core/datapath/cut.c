/* SPDX-License-Identifier: Apache-2.0
 *
 * cut.c: see cut.h. Fragments as RFC 791, 3.2, and RFC 8200, 4.5, have them.
 */
#include "cut.h"

#include "engine.h"
#include "pieces.h"

enum {
    UNIT = 8, /* all pieces but the last are a multiple of it long */
};

static unsigned header_bytes(const struct packet_path *path)
{
    return address_is_ipv4(&path->source) ? IPV4_HEADER : IPV6_HEADER;
}

bool cut_exceeds_mtu(const struct engine *engine, const struct packet_path *path, uint32_t l4_length)
{
    return header_bytes(path) + l4_length > engine->view.mtu;
}

bool cut_needed(const struct engine *engine, const struct packet_path *path, uint32_t l4_length)
{
    return !engine->link->large && cut_exceeds_mtu(engine, path, l4_length);
}

int cut_send(struct engine *engine, const struct packet_path *path, uint8_t protocol, uint8_t hops,
             const struct iovec *l4, unsigned count, uint32_t l4_length, struct cut *cut)
{
    uint8_t frame[FRAME_BYTES_MAX];
    unsigned headers = header_bytes(path) + (address_is_ipv4(&path->source) ? 0 : IPV6_FRAGMENT_HEADER);
    uint32_t room = (engine->view.mtu - headers) / UNIT * UNIT; /* the view has no MTU below 68 */

    if (!cut->done)
        cut->identification = ++engine->identification; /* nobody but the guest sees it */
    while (cut->done < l4_length) {
        uint32_t left = l4_length - cut->done, part = left < room ? left : room;
        struct fragment fragment = {
            .identification = cut->identification, .offset = (uint16_t)cut->done, .more = part < left};
        unsigned header = packet_write_fragment_headers(frame, path, protocol, hops, &fragment, part);

        pieces_read(l4, count, cut->done, frame + header, part);
        int err = engine_send_frame(engine, frame, header + part);
        if (err)
            return err;
        engine->counters[C_fragments_to_guest]++;
        cut->done += part;
    }
    return 0;
}
