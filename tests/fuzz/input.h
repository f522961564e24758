/* SPDX-License-Identifier: Apache-2.0
 *
 * input.h: what libFuzzer gives, read from its front as small numbers. At its end everything is 0, so that a shorter
 * input is a simpler one. And what a harness says when something that must hold does not.
 *
 * Used by the harnesses of this folder. Adversary: nobody.
 */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct input {
    const uint8_t *at;
    size_t left;
};

static inline unsigned input_byte(struct input *input)
{
    if (!input->left)
        return 0;
    input->left--;
    return *input->at++;
}

static inline unsigned input_word(struct input *input)
{
    unsigned low = input_byte(input);

    return low | input_byte(input) << 8;
}

/* Up to `length` bytes; how many there were. */
static inline size_t input_bytes(struct input *input, void *to, size_t length)
{
    if (length > input->left)
        length = input->left;
    if (length)
        memcpy(to, input->at, length);
    input->at += length;
    input->left -= length;
    return length;
}

/* With FUZZ_TRACE in the environment a harness says what it does: to understand an input that it was given. */
#define TRACE(...)                                                                                                     \
    do {                                                                                                               \
        if (getenv("FUZZ_TRACE"))                                                                                      \
            fprintf(stderr, __VA_ARGS__);                                                                              \
    } while (0)

/* Ends the run like a crash, with the input kept by libFuzzer. */
#define REQUIRE(condition, ...)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s: ", __FILE__, __LINE__, #condition);                             \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
