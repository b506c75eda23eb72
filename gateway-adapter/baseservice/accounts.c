/* Demo accounts and gateways' keys, read straight from the settings' texts: there are few, and they never change. */
#include "baseservice.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#define ACCOUNTS_MAX 100 /* in one answer */

/* "account:name:password" */
struct account {
    struct str id, name, password;
};

static bool account_next(struct str *list, struct account *account, struct str *item)
{
    const char *first, *second;

    if (!settings_list_next(list, item))
        return false;
    *account = (struct account){{NULL, 0}, {NULL, 0}, {NULL, 0}};
    first = memchr(item->p, ':', item->n);
    second = first ? memchr(first + 1, ':', item->n - (size_t)(first + 1 - item->p)) : NULL;
    if (second) {
        account->id = (struct str){item->p, (size_t)(first - item->p)};
        account->name = (struct str){first + 1, (size_t)(second - first - 1)};
        account->password = (struct str){second + 1, item->n - (size_t)(second + 1 - item->p)};
    }
    return true;
}

bool accounts_check(const char *accounts, struct buf *why)
{
    struct str list = str_of(accounts), item;
    struct account account;
    size_t problems = why->n, number = 0;

    while (account_next(&list, &account, &item)) {
        number++;
        if (!account.id.n || account.id.n > 64 || account.id.p[0] == '@' || !account.name.n || !account.password.n)
            buf_printf(why, "accounts: number %zu is no account:name:password\n", number); /* it may hold a password */
    }
    return why->n == problems;
}

static bool secret_eq(struct str a, struct str b)
{
    unsigned char sum_a[SHA256_DIGEST_LENGTH], sum_b[SHA256_DIGEST_LENGTH];

    SHA256((const unsigned char *)a.p, a.n, sum_a);
    SHA256((const unsigned char *)b.p, b.n, sum_b);
    return CRYPTO_memcmp(sum_a, sum_b, sizeof sum_a) == 0;
}

struct str account_login(const char *accounts, struct str account_id, struct str password)
{
    struct str list = str_of(accounts), item, found = {NULL, 0};
    struct account account;

    while (account_next(&list, &account, &item)) {
        bool same = secret_eq(account.password, password);

        if (str_eq(account.id, account_id) && same)
            found = account.name;
    }
    return found;
}

static bool list_names(struct str ids, struct str id)
{
    struct str item;

    while (settings_list_next(&ids, &item))
        if (str_eq(item, id))
            return true;
    return false;
}

void accounts_write(const char *accounts, struct str ids, struct str match, struct buf *out)
{
    struct str list = str_of(accounts), item;
    struct account account;
    size_t count = 0;

    while (count < ACCOUNTS_MAX && account_next(&list, &account, &item)) {
        if (ids.p ? !list_names(ids, account.id)
                  : match.n && !memmem(account.id.p, account.id.n, match.p, match.n) &&
                        !memmem(account.name.p, account.name.n, match.p, match.n))
            continue;
        buf_text(out, count++ ? ",{\"account_id\":" : "{\"account_id\":");
        buf_json_string(out, account.id);
        buf_text(out, ",\"name\":");
        buf_json_string(out, account.name);
        buf_char(out, '}');
    }
}

bool key_valid(const char *service_keys, struct str authorization)
{
    struct str list = str_of(service_keys), item;
    bool valid = false;

    if (authorization.n <= 7 || memcmp(authorization.p, "Bearer ", 7) != 0)
        return false;
    authorization = (struct str){authorization.p + 7, authorization.n - 7};
    while (settings_list_next(&list, &item)) {
        const char *colon = memchr(item.p, ':', item.n);
        struct str key = colon ? (struct str){colon + 1, item.n - (size_t)(colon + 1 - item.p)} : item;

        valid |= key.n && secret_eq(key, authorization);
    }
    return valid;
}
