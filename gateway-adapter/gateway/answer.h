/*
 * The head of an HTTP/1.1 answer of an instance or of the BaseService, read from bytes that are no C text.
 * Thread: pure functions. Memory: what they give points into what they were given.
 */
#ifndef ROOMD_GATEWAY_ANSWER_H
#define ROOMD_GATEWAY_ANSWER_H

#include "room/base/buf.h"

/* Bytes of the head, its empty line included; 0: it is not all there. *status: 0 when it is no answer of HTTP/1.1. */
size_t answer_head(struct str bytes, int *status);
struct str answer_header(struct str head, const char *name); /* in any case of letters; empty: it has none */
int64_t answer_length(struct str head);                      /* Content-Length; -1: none, or no number */

#endif
