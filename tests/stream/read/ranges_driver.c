/* Sends damaged responses to the reader of ranges: ranges_driver FIRST COUNT.
 *
 * It is compiled together with ranges.c, under sanitizers. Each buffer is an allocation of just its
 * size. What is read must be exactly what was requested.
 */
#include "../../remote/ranges.c"

#include "driver.h"

#include <fcntl.h>

enum { MOST_EXCHANGES = 4, MOST_CONNECTIONS_HERE = 3, MOST_BYTES = 3000, MOST_SENT = 40000 };

static const char *const EXTRA[] = {
    "",
    "Connection: close\r\n",
    "X: y\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "content-encoding: identity\r\n",
    ": \r\n",
    "Content-Range: bytes 0-1/2\r\n",
};

/* Writes a response to one of the requests, mostly damaged. Returns its size. */
static int64_t make_response(uint8_t *out, int64_t start, int64_t stop, int is_right) {
    const char *const extra = is_right ? EXTRA[below(3)] : EXTRA[below(8)];
    int64_t n = sprintf((char *)out,
                        "HTTP/1.1 206 Partial\r\nContent-Range: bytes %lld-%lld/%lld\r\n%s"
                        "Content-Length: %lld\r\n\r\n",
                        (long long)start, (long long)(stop - 1), (long long)(stop + below(9)), extra,
                        (long long)(stop - start));
    for (int64_t i = start; i < stop; i++) out[n++] = (uint8_t)(i * 7 + 3);
    if (is_right) return n;
    for (int64_t i = below(4); i > 0; i--) {
        const int64_t at = below(2) ? below(n) : below(n < 120 ? n : 120);
        switch (below(4)) {
        case 0: out[at] = (uint8_t)below(256); break;
        case 1: n = at; break;
        case 2: memset(out + n, '\n', 20); n += 20; break;
        default: memmove(out + at, out + at + 1, (size_t)(n - at - 1)); n--;
        }
        if (n < 1) n = 1;
    }
    return n;
}

static int64_t run_case(void) {
    static uint8_t sent[MOST_SENT];
    const int64_t n = 1 + below(MOST_EXCHANGES), m = 1 + below(MOST_CONNECTIONS_HERE);
    const char *const head = "GET / HTTP/1.1\r\n\r\n";
    const int32_t stop = !below(20);
    const int is_forged = !below(4);
    int64_t n_done = 0;
    Exchange *const exchanges = exactly(n * (int64_t)sizeof(Exchange));
    Connection *const connections = exactly(m * (int64_t)sizeof(Connection));
    memset(exchanges, 0, (size_t)n * sizeof(Exchange));
    int peers[MOST_CONNECTIONS_HERE];
    for (int64_t i = 0; i < n; i++) {
        Exchange *const e = exchanges + i;
        e->start = below(1000);
        e->stop = e->start + 1 + below(MOST_BYTES);
        e->buffer_bytes = e->stop - e->start + MAX_HEAD_BYTES;
        e->buffer = exactly(e->buffer_bytes);
        e->head = head;
        e->head_bytes = (int64_t)strlen(head);
        e->connection = NONE;
        if (!is_forged) continue;
        int64_t *const numbers[] = {&e->start,  &e->stop,       &e->sent,
                                    &e->filled, &e->body_start, &e->status};
        for (int k = 0; k < 6; k++)
            if (!below(20)) *numbers[k] = made_up(*numbers[k]);
    }
    for (int64_t i = 0; i < m; i++) {
        int ends[2];
        require(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "no sockets");
        fcntl(ends[0], F_SETFL, O_NONBLOCK);
        fcntl(ends[1], F_SETFL, O_NONBLOCK);
        connections[i].socket = ends[0];
        connections[i].state = below(3) ? FREE : CONNECTING;
        connections[i].exchange = NONE;
        connections[i].is_reused = below(2);
        peers[i] = ends[1];
        if (is_forged && !below(9)) connections[i].state = made_up(BUSY);
        if (is_forged && !below(9)) connections[i].exchange = made_up(0);
    }
    for (int round = 0; round < 12; round++) {
        const int64_t left = spinezarr_exchange(exchanges, n, connections, m, &stop, 0);
        require(is_forged || (left >= 0 && left <= n), "sound tables are refused");
        if (left <= 0) break;
        for (int64_t i = 0; i < m; i++) {
            if (connections[i].state != BUSY || !below(3)) continue;
            const Exchange *const e = exchanges + connections[i].exchange;
            const int64_t size = make_response(sent, e->start, e->stop, below(2));
            const int64_t piece = below(3) ? size : below(size);
            if (write(peers[i], sent, (size_t)piece) < piece || !below(6)) shutdown(peers[i], SHUT_WR);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        const Exchange *const e = exchanges + i;
        if (e->status == DONE && !is_forged) {
            require(e->filled == e->body_start + e->stop - e->start, "not the whole range");
            n_done++;
        }
        free(e->buffer);
    }
    for (int64_t i = 0; i < m; i++) {
        close((int)connections[i].socket);
        close(peers[i]);
    }
    free(exchanges), free(connections);
    return n_done;
}

int main(int argc, char **argv) {
    require(argc == 3, "ranges_driver FIRST COUNT");
    const int64_t first = atoll(argv[1]), count = atoll(argv[2]);
    signal(SIGABRT, aborted);
    signal(SIGPIPE, SIG_IGN);
    int64_t n_done = 0;
    for (int64_t i = first; i < first + count; i++) {
        start_case(i);
        n_done += run_case();
    }
    printf("%lld cases of ranges: %lld read\n", (long long)count, (long long)n_done);
    return 0;
}
