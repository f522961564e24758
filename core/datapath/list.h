/* SPDX-License-Identifier: Apache-2.0
 *
 * list.h: an intrusive queue from which a member can leave in constant time.
 */
#ifndef LOCKGATE_LIST_H
#define LOCKGATE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct node {
    struct node *next, *previous; /* NULL: on no list */
};

struct list {
    struct node head;
};

static inline void list_init(struct list *list)
{
    list->head.next = list->head.previous = &list->head;
}

static inline bool list_empty(const struct list *list)
{
    return list->head.next == &list->head;
}

static inline bool node_listed(const struct node *node)
{
    return node->next != NULL;
}

static inline void list_append(struct list *list, struct node *node)
{
    if (node_listed(node))
        return;
    node->next = &list->head;
    node->previous = list->head.previous;
    node->previous->next = node;
    list->head.previous = node;
}

static inline void list_prepend(struct list *list, struct node *node)
{
    if (node_listed(node))
        return;
    node->next = list->head.next;
    node->previous = &list->head;
    node->next->previous = node;
    list->head.next = node;
}

static inline void node_leave(struct node *node)
{
    if (!node_listed(node))
        return;
    node->next->previous = node->previous;
    node->previous->next = node->next;
    node->next = node->previous = NULL;
}

static inline struct node *list_pop(struct list *list)
{
    struct node *node = list->head.next;

    if (node == &list->head)
        return NULL;
    node_leave(node);
    return node;
}

/* Moves all of `from`, which is empty afterwards, to the empty list `to`. */
static inline void list_move(struct list *from, struct list *to)
{
    if (list_empty(from)) {
        list_init(to);
        return;
    }
    to->head = from->head;
    to->head.next->previous = &to->head;
    to->head.previous->next = &to->head;
    list_init(from);
}

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))

#endif
