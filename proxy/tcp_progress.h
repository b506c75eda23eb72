/* How far a TCP peer has come. Alone in its file because Linux's header for it cannot stand beside the C library's.
 * Thread: any. */
#ifndef ROOMD_PROXY_TCP_PROGRESS_H
#define ROOMD_PROXY_TCP_PROGRESS_H

#include <stdint.h>

uint64_t tcp_acked_bytes(int fd); /* bytes the peer has acknowledged; 0 when the kernel does not tell */

#endif
