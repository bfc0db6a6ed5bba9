/* Reads byte ranges of objects over HTTP/1.1, many at once, without Python.
 *
 * The caller owns all memory, sockets and requests. One call sends waiting requests on free
 * connections, receives responses, and returns when all are done, the time is over, or the caller
 * must act. A response counts only if it is exactly what was requested: 206 with the requested
 * range in Content-Range and its length in Content-Length. Everything else is left to the caller,
 * which asks again with a client that understands more of HTTP. No response is longer than its
 * buffer.
 *
 * HTTP/1.1 is RFC 9112; ranges and fields are RFC 9110. */

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* Python ignores the signal */
#endif

#define EXPORT __attribute__((visibility("default")))
#define VERSION 1
#define MAX_HEAD_BYTES (1 << 14)
#define MAX_CONNECTIONS 1024
#define NONE (-1)

/* Status of a request. */
enum { WAITING, RUNNING, DONE, LOST, UNSUPPORTED };
/* State of a connection. */
enum { CONNECTING, FREE, BUSY, DEAD, GONE }; /* GONE is dead for good */

typedef struct {
    const char *head;     /* the request, with its empty line */
    uint8_t *buffer;      /* memory for head and body of the response */
    int64_t head_bytes;
    int64_t buffer_bytes; /* at least MAX_HEAD_BYTES more than stop - start */
    int64_t start, stop;  /* the requested range */
    int64_t sent;
    int64_t filled;       /* received bytes */
    int64_t body_start;   /* where the body lies in the buffer; 0 until the head is complete */
    int64_t with_head;    /* bytes that had come when the head was complete */
    int64_t began_ns, body_ns, ended_ns; /* times of the monotonic clock */
    int64_t connection;   /* number of its connection, or NONE */
    int64_t status;
} Exchange;

typedef struct {
    int64_t socket;
    int64_t state;
    int64_t exchange;      /* number of its request, or NONE */
    int64_t is_reused;     /* whether it has carried a response before */
} Connection;

EXPORT int64_t spinezarr_ranges_version(void) { return VERSION; }
EXPORT int64_t spinezarr_exchange_bytes(void) { return sizeof(Exchange); }
EXPORT int64_t spinezarr_connection_bytes(void) { return sizeof(Connection); }

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int is_token(uint8_t c) {
    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) return 1;
    return c && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

static uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c; }

/* Returns whether some bytes are a word in any case; the word itself is in lower case. */
static int equals(const uint8_t *text, int64_t n, const char *word) {
    if ((int64_t)strlen(word) != n) return 0;
    for (int64_t i = 0; i < n; i++)
        if (lower(text[i]) != (uint8_t)word[i]) return 0;
    return 1;
}

/* Reads a number without a sign. Returns where it ends; NULL if there is none or it is too big. */
static const uint8_t *read_number(const uint8_t *at, const uint8_t *end, int64_t *number) {
    const uint8_t *begin = at;
    int64_t value = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++) {
        if (at - begin >= 18) return NULL;
        value = 10 * value + (*at - '0');
    }
    *number = value;
    return at > begin ? at : NULL;
}

/* Returns whether a value is "bytes FIRST-LAST/TOTAL" with the requested range. */
static int is_range(const uint8_t *at, const uint8_t *end, int64_t start, int64_t stop) {
    int64_t first = 0, last = 0, total = 0;
    if (end - at < 6 || !equals(at, 6, "bytes ")) return 0;
    at = read_number(at + 6, end, &first);
    if (at == NULL || at == end || *at++ != '-') return 0;
    at = read_number(at, end, &last);
    if (at == NULL || at == end || *at++ != '/') return 0;
    if (end - at == 1 && *at == '*') return first == start && last + 1 == stop;
    at = read_number(at, end, &total);
    return at == end && first == start && last + 1 == stop && total >= stop;
}

/* Returns whether a list of tokens, separated by commas, contains a word. */
static int contains(const uint8_t *at, const uint8_t *end, const char *word) {
    while (at < end) {
        const uint8_t *comma = memchr(at, ',', end - at);
        const uint8_t *stop = comma ? comma : end;
        const uint8_t *last = stop;
        while (at < last && (*at == ' ' || *at == '\t')) at++;
        while (last > at && (last[-1] == ' ' || last[-1] == '\t')) last--;
        if (equals(at, last - at, word)) return 1;
        at = comma ? comma + 1 : end;
    }
    return 0;
}

/* Returns whether the head of a response, without its empty line, promises the requested bytes. */
static int is_expected(const uint8_t *at, const uint8_t *end, const Exchange *e, int *keeps_alive) {
    int has_length = 0, has_range = 0;
    if (end - at < 12 || memcmp(at, "HTTP/1.1 206", 12) != 0) return 0;
    at += 12;
    const uint8_t *line_end = memchr(at, '\r', end - at);
    if (line_end == NULL) return 0;
    if (at < line_end && *at != ' ') return 0;
    for (const uint8_t *c = at; c < line_end; c++)
        if ((*c < ' ' && *c != '\t') || *c == 0x7f) return 0;
    *keeps_alive = 1;
    for (at = line_end; at < end; at = line_end) {
        if (end - at < 2 || at[0] != '\r' || at[1] != '\n') return 0;
        at += 2;
        line_end = memchr(at, '\r', end - at);
        if (line_end == NULL) line_end = end;
        const uint8_t *colon = at;
        while (colon < line_end && is_token(*colon)) colon++;
        if (colon == at || colon == line_end || *colon != ':') return 0;
        const uint8_t *value = colon + 1, *value_end = line_end;
        for (const uint8_t *c = value; c < value_end; c++)
            if ((*c < ' ' && *c != '\t') || *c == 0x7f) return 0;
        while (value < value_end && (*value == ' ' || *value == '\t')) value++;
        while (value_end > value && (value_end[-1] == ' ' || value_end[-1] == '\t')) value_end--;
        int64_t n = colon - at, length = 0;
        if (equals(at, n, "content-length")) {
            if (has_length++) return 0;
            if (read_number(value, value_end, &length) != value_end) return 0;
            if (length != e->stop - e->start) return 0;
        } else if (equals(at, n, "content-range")) {
            if (has_range++ || !is_range(value, value_end, e->start, e->stop)) return 0;
        } else if (equals(at, n, "content-encoding")) {
            if (!equals(value, value_end - value, "identity")) return 0;
        } else if (equals(at, n, "transfer-encoding")) {
            return 0;
        } else if (equals(at, n, "connection")) {
            if (contains(value, value_end, "close")) *keeps_alive = 0;
        }
    }
    return has_length && has_range;
}

/* Returns whether an idle connection is still open, and the server has sent nothing on it. */
static int is_usable(const Connection *c) {
    uint8_t byte;
    if (!c->is_reused) return 1;
    ssize_t n = recv((int)c->socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

static void end_exchange(Exchange *e, Connection *c, int64_t status, int64_t state) {
    e->status = status;
    e->connection = NONE;
    e->ended_ns = now_ns();
    c->exchange = NONE;
    c->state = state;
    c->is_reused = 1;
}

static void begin_exchange(Exchange *exchanges, int64_t number, Connection *connections,
                           int64_t at) {
    Exchange *e = &exchanges[number];
    e->status = RUNNING;
    e->connection = at;
    e->sent = e->filled = e->body_start = e->body_ns = 0;
    e->began_ns = now_ns();
    connections[at].exchange = number;
    connections[at].state = BUSY;
}

/* Ends a connection that failed. A server may close an idle one at any time, so then the request
 * waits again. */
static void lose(Exchange *e, Connection *c) {
    int64_t status = c->is_reused && !e->filled ? WAITING : LOST;
    end_exchange(e, c, status, DEAD);
}

static void send_more(Exchange *e, Connection *c) {
    while (e->sent < e->head_bytes) {
        const ssize_t n = send((int)c->socket, e->head + e->sent, (size_t)(e->head_bytes - e->sent),
                               MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            e->sent += n;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else {
            if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
            lose(e, c);
            return;
        }
    }
}

/* Finds the end of the head, and checks it. Returns 0 if the response is not the expected one. */
static int read_head(Exchange *e, int *keeps_alive) {
    int64_t n = e->filled < MAX_HEAD_BYTES ? e->filled : MAX_HEAD_BYTES;
    for (int64_t i = 3; i < n; i++) {
        if (e->buffer[i] != '\n' || memcmp(e->buffer + i - 3, "\r\n\r\n", 4) != 0) continue;
        if (!is_expected(e->buffer, e->buffer + i - 3, e, keeps_alive)) return 0;
        e->body_start = i + 1;
        e->with_head = e->filled;
        e->body_ns = now_ns();
        return 1;
    }
    return n < MAX_HEAD_BYTES;
}

static void receive_more(Exchange *e, Connection *c) {
    for (;;) {
        int64_t end = e->body_start ? e->body_start + e->stop - e->start : e->buffer_bytes;
        ssize_t n = recv((int)c->socket, e->buffer + e->filled, end - e->filled, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n <= 0) {
            lose(e, c);
            return;
        }
        e->filled += n;
        if (!e->body_start) {
            int keeps_alive = 1;
            if (!read_head(e, &keeps_alive)) {
                end_exchange(e, c, UNSUPPORTED, DEAD);
                return;
            }
            if (!keeps_alive) c->is_reused = 2; /* it ends with this response */
        }
        if (e->body_start) {
            end = e->body_start + e->stop - e->start;
            if (e->filled > end) {
                end_exchange(e, c, UNSUPPORTED, DEAD);
                return;
            }
            if (e->filled == end) {
                end_exchange(e, c, DONE, c->is_reused == 2 ? DEAD : FREE);
                return;
            }
        }
    }
}

static void finish_connecting(Connection *c) {
    int problem = 0;
    socklen_t size = sizeof(problem);
    if (getsockopt((int)c->socket, SOL_SOCKET, SO_ERROR, &problem, &size) != 0 || problem)
        c->state = DEAD;
    else
        c->state = FREE;
}

/* Returns whether the numbers of the tables fit together. */
static int is_valid(const Exchange *exchanges, int64_t n, const Connection *connections,
                    int64_t m) {
    if (n < 0 || m < 0 || m > MAX_CONNECTIONS) return 0;
    for (int64_t i = 0; i < n; i++) {
        const Exchange *e = &exchanges[i];
        if (e->start < 0 || e->stop <= e->start || e->head_bytes <= 0) return 0;
        if (e->buffer_bytes < MAX_HEAD_BYTES) return 0;
        if (e->stop - e->start > e->buffer_bytes - MAX_HEAD_BYTES) return 0;
        if (e->sent < 0 || e->sent > e->head_bytes) return 0;
        if (e->filled < 0 || e->filled > e->buffer_bytes) return 0;
        if (e->status != RUNNING) continue;
        if (e->body_start < 0 || e->body_start > MAX_HEAD_BYTES) return 0;
        if (e->body_start && e->filled < e->body_start) return 0;
        if (e->body_start && e->filled - e->body_start > e->stop - e->start) return 0;
    }
    for (int64_t i = 0; i < m; i++) {
        const Connection *c = &connections[i];
        if (c->state == BUSY && (c->exchange < 0 || c->exchange >= n)) return 0;
        if (c->state == BUSY && exchanges[c->exchange].status != RUNNING) return 0;
    }
    return 1;
}

/* Sends waiting requests and receives responses.
 *
 * Returns the number of requests that wait or run, or NONE if the numbers do not fit together. It
 * returns before the time is over when all are done, the caller has set stop, a signal came, or a
 * connection has died while a request waits. */
EXPORT int64_t spinezarr_exchange(Exchange *exchanges, int64_t n, Connection *connections,
                                  int64_t m, const volatile int32_t *stop, int64_t timeout_ms) {
    struct pollfd polled[MAX_CONNECTIONS];
    int64_t number_of[MAX_CONNECTIONS];
    if (timeout_ms < 0 || timeout_ms > 1000) return NONE;
    if (!is_valid(exchanges, n, connections, m)) return NONE;
    int64_t until_ns = now_ns() + timeout_ms * 1000000;
    int64_t next = 0;
    int is_over = 0;
    for (;;) {
        int64_t n_left = 0, n_waiting = 0, n_dead = 0, n_polled = 0;
        for (int64_t at = 0; at < m; at++) {
            Connection *c = &connections[at];
            if (c->state == FREE) {
                while (next < n && exchanges[next].status != WAITING) next++;
                if (next < n) {
                    if (!is_usable(c)) {
                        c->state = DEAD;
                    } else {
                        begin_exchange(exchanges, next, connections, at);
                        send_more(&exchanges[next], c);
                        if (exchanges[next].status == WAITING) next = 0;
                    }
                }
            }
            if (c->state == DEAD) n_dead++;
            if (c->state == BUSY || c->state == CONNECTING) {
                const Exchange *e = c->state == BUSY ? &exchanges[c->exchange] : NULL;
                const int is_sending = e == NULL || e->sent < e->head_bytes;
                polled[n_polled].fd = (int)c->socket;
                polled[n_polled].events = (short)((is_sending ? POLLOUT : 0) | (e ? POLLIN : 0));
                polled[n_polled].revents = 0;
                number_of[n_polled++] = at;
            }
        }
        for (int64_t i = 0; i < n; i++) {
            n_left += exchanges[i].status == WAITING || exchanges[i].status == RUNNING;
            n_waiting += exchanges[i].status == WAITING;
        }
        if (!n_left || *stop || is_over || (n_waiting && n_dead) || !n_polled) return n_left;
        const int64_t left_ms = (until_ns - now_ns() + 999999) / 1000000;
        is_over = left_ms <= 0; /* what has come is still received */
        int n_ready = poll(polled, (nfds_t)n_polled, is_over ? 0 : (int)left_ms);
        if (n_ready < 0) return n_left;
        for (int64_t i = 0; i < n_polled && n_ready > 0; i++) {
            if (!polled[i].revents) continue;
            n_ready--;
            Connection *c = &connections[number_of[i]];
            if (c->state == CONNECTING) {
                finish_connecting(c);
                continue;
            }
            Exchange *e = &exchanges[c->exchange];
            if (polled[i].revents & POLLOUT) send_more(e, c);
            if (e->status == RUNNING && (polled[i].revents & ~POLLOUT)) receive_more(e, c);
            if (e->status == WAITING && c->state == DEAD) next = 0;
        }
    }
}
