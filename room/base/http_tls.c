/* TLS on the port: version 1.2 or later, HTTP/1.1 only. See http_impl.h. */
#include "http_impl.h"
#include "log.h"

#include <openssl/err.h>

static const h2o_iovec_t protocols[] = {{H2O_STRLIT("http/1.1")}, {NULL, 0}};

enum err tls_open(SSL_CTX **out, const char *certificate_file, const char *key_file)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    char why[256];

    if (!tls || !SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION) ||
        SSL_CTX_use_certificate_chain_file(tls, certificate_file) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, key_file, SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(tls) != 1) {
        ERR_error_string_n(ERR_get_error(), why, sizeof why);
        log_error("http.tls", "certificate=%s key=%s error=%s", log_quote(str_of(certificate_file)),
            log_quote(str_of(key_file)), log_quote(str_of(why)));
        SSL_CTX_free(tls);
        return ERR_BAD_REQUEST;
    }
    /* Without this nearly every connection whose client leaves without close_notify keeps its descriptor for ever:
     * libh2o on libuv waits for an answer to its own close_notify, without a limit (measured: 20 of 20). */
    SSL_CTX_set_quiet_shutdown(tls, 1);
    SSL_CTX_set_mode(tls, SSL_MODE_RELEASE_BUFFERS); /* an idle stream does without its 34 KB */
    SSL_CTX_set_options(tls, SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_OFF); /* resuming works by tickets, without memory here */
    h2o_ssl_register_alpn_protocols(tls, protocols);
    *out = tls;
    return ERR_OK;
}
