/*
 * What the program says to whoever started it, on stderr: sentences, where the log (log.h) has events.
 * Thread: any.
 */
#ifndef ROOMD_BASE_COMPLAIN_H
#define ROOMD_BASE_COMPLAIN_H

#include "buf.h"

void complain(const char *format, ...) PRINTF_LIKE(1, 2); /* one line, the program's name in front */
void complain_lines(struct buf *lines);                   /* each line of the buffer like that; clears it */

#endif
