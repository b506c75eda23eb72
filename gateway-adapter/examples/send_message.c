/* Make a room, send a message into it, read it back. Usage: send_message URLS KEY BROKERS */
#include <roomd_adapter.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct roomd_client *client;
    struct roomd_call call = {0};
    struct roomd_send send = {0};
    struct roomd_room_created made;
    struct roomd_history_pulled page = {0};
    const char *why;

    if (argc < 4)
        return 2;
    struct roomd_settings settings = {.instance_urls = argv[1], .service_key = argv[2], .broker_urls = argv[3]};
    if (roomd_client_open(&client, &settings, &why))
        return fprintf(stderr, "%s\n", why), 1;
    struct roomd_room_create create = {.key = "example", .members = ROOMD_TEXTS("alice", "bob")};
    roomd_room_create(client, &call, &create, &made);
    if (roomd_call_wait(client, &call))
        return fprintf(stderr, "%s: %s\n", roomd_code_name(call.code), call.message), 1;
    roomd_send(
        client, &send, &(struct roomd_message){.room_id = made.room.room_id, .sender = "alice", .text = "Hello, Bob"});
    if (roomd_send_wait(client, &send))
        return fprintf(stderr, "%s: %s\n", roomd_code_name(send.code), send.text), 1;
    printf("%s has the id %s\n", send.client_msg_id, send.message_id);

    struct roomd_history_pull pull = {
        .room_id = made.room.room_id, .account_id = "bob", .after = "0:0", .wait_ms = 5000};
    roomd_history_pull(client, &call, &pull, &page);
    for (size_t i = 0; roomd_call_wait(client, &call) == ROOMD_OK && i < page.entry_count; i++)
        printf("%.*s\n", (int)page.entries[i].json.n, page.entries[i].json.p);
    roomd_call_clear(&call);
    roomd_client_close(client);
}
