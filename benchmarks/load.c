/* Requests random ranges of one file over connections that stay open, and prints figures.
 *
 * load PORT CONNECTIONS SECONDS PATH FILE_BYTES RANGE_BYTES SEED [HEADER...]
 *
 * The program is one thread with epoll and a large buffer, so that it leaves the processor cores to
 * the server. Each answer must have status 206 and the requested number of bytes. The program
 * prints the number of requests, the bytes of bodies, the seconds, and the median and the 99th
 * percentile of the times of requests in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 8192, BUFFER = 1 << 18, MAX_TIMES = 1 << 23 };

typedef struct {
    int fd;
    char head[HEAD];
    size_t head_size;  /* received bytes of the head */
    int64_t remaining; /* bytes of the body still to receive; -1 until the head is complete */
    double sent_at;
} Connection;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *problem) {
    fprintf(stderr, "load: %s\n", problem);
    exit(1);
}

static uint64_t state;

static uint64_t next_random(void) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static const char *path;
static char headers[4096];
static int64_t file_bytes, range_bytes;

static void send_request(Connection *c) {
    char text[HEAD];
    int64_t n_starts = file_bytes - range_bytes + 1;
    int64_t start = (int64_t)(next_random() % (uint64_t)n_starts);
    int size = snprintf(text, sizeof text,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=%lld-%lld\r\n%s\r\n",
                        path, (long long)start, (long long)(start + range_bytes - 1), headers);
    if (size >= (int)sizeof text || send(c->fd, text, (size_t)size, MSG_NOSIGNAL) != size)
        fail("a request could not be sent");
    c->head_size = 0;
    c->remaining = -1;
    c->sent_at = now();
}

/* Reads the head of an answer from the received bytes; the bytes after it count as body. */
static void read_head(Connection *c) {
    c->head[c->head_size] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (end == NULL) {
        if (c->head_size + 1 >= HEAD) fail("a head is too long");
        return;
    }
    if (strncmp(c->head, "HTTP/1.1 206", 12)) fail("an answer is not 206");
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    if (length == NULL || length > end || strtoll(length + 17, NULL, 10) != range_bytes)
        fail("an answer is not as long as the requested range");
    c->remaining = range_bytes - (int64_t)(c->head_size - (size_t)(end + 4 - c->head));
    if (c->remaining < 0) fail("an answer is longer than its Content-Length");
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 8) fail("usage: load PORT CONNECTIONS SECONDS PATH FILE_BYTES RANGE_BYTES SEED ...");
    int n = atoi(argv[2]);
    double seconds = atof(argv[3]);
    path = argv[4];
    file_bytes = atoll(argv[5]);
    range_bytes = atoll(argv[6]);
    state = strtoull(argv[7], NULL, 10);
    for (int i = 8; i < argc; i++) {
        strncat(headers, argv[i], sizeof headers - strlen(headers) - 3);
        strcat(headers, "\r\n");
    }
    if (range_bytes < 1 || range_bytes > file_bytes) fail("no such range");
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argv[1]))};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    int poll = epoll_create1(0);
    Connection *connections = calloc((size_t)n, sizeof *connections);
    char *buffer = malloc(BUFFER);
    float *times = malloc(MAX_TIMES * sizeof *times);
    if (connections == NULL || buffer == NULL || times == NULL) fail("no memory");
    for (int i = 0; i < n; i++) {
        Connection *c = &connections[i];
        int enabled = 1;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &enabled, sizeof enabled);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("no server answers");
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event);
    }
    double started = now(), deadline = started + seconds;
    for (int i = 0; i < n; i++) send_request(&connections[i]);
    int64_t answers = 0, bytes = 0;
    while (now() < deadline) {
        struct epoll_event events[64];
        int n_events = epoll_wait(poll, events, 64, 1000);
        for (int i = 0; i < n_events; i++) {
            Connection *c = events[i].data.ptr;
            ssize_t received;
            if (c->remaining < 0) {
                received = recv(c->fd, c->head + c->head_size, HEAD - 1 - c->head_size, 0);
                if (received > 0) {
                    c->head_size += (size_t)received;
                    read_head(c);
                }
            } else {
                size_t size = c->remaining < BUFFER ? (size_t)c->remaining : BUFFER;
                received = recv(c->fd, buffer, size, 0);
                if (received > 0) c->remaining -= received;
            }
            if (received <= 0 && errno != EINTR) fail("a connection ended");
            if (c->remaining) continue;
            if (answers < MAX_TIMES) times[answers] = (float)(now() - c->sent_at);
            answers++;
            bytes += range_bytes;
            send_request(c);
        }
    }
    double wall = now() - started;
    if (answers == 0) fail("nothing was answered");
    size_t n_times = answers < MAX_TIMES ? (size_t)answers : MAX_TIMES;
    qsort(times, n_times, sizeof *times, by_size);
    printf("{\"requests\": %lld, \"bytes\": %lld, \"seconds\": %.6f, \"p50_us\": %.0f, \"p99_us\": %.0f}\n",
           (long long)answers, (long long)bytes, wall, 1e6 * times[n_times / 2],
           1e6 * times[(size_t)(0.99 * (double)n_times)]);
    return 0;
}
