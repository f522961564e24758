/* SPDX-License-Identifier: Apache-2.0
 *
 * script_parts.h: what the files of the world of script.h say to each other.
 */
#ifndef SCRIPT_PARTS_H
#define SCRIPT_PARTS_H

#include <sys/epoll.h>

#include "engine.h"

struct engine *script_engine(void);

/* script_wakeup.c */
void wakeups_forget(void);
void wakeup_begins(const struct engine *engine, const struct epoll_event *event); /* before it is acted upon */
void wakeups_end(const struct engine *engine); /* what those of this step have changed */

/* script_splice.c */
void script_agent_init(struct engine *engine);

#endif
