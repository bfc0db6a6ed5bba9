/* Requests random ranges of one file over connections that stay open, and prints what came.
 *
 * load PORT CONNECTIONS SECONDS PATH FILE_BYTES RANGE_BYTES SEED [HEADER...]
 *
 * It is one thread with epoll and a large buffer, so that it leaves the processor cores to the
 * server. Each answer must be 206 with as many bytes as were asked for. Prints requests,
 * bytes of bodies, seconds, and microseconds of the median and of the slowest hundredth.
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

enum { HEAD = 8192, BUFFER = 1 << 18, MOST = 1 << 23 };

typedef struct {
    int fd;
    char head[HEAD];
    size_t head_size; /* of what has come of the head */
    int64_t left;     /* of the body; -1 until the head is whole */
    double asked_at;
} Connection;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s\n", what);
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

static void ask(Connection *c) {
    char text[HEAD];
    int64_t places = file_bytes - range_bytes + 1;
    int64_t start = (int64_t)(next_random() % (uint64_t)places);
    int size = snprintf(text, sizeof text,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=%lld-%lld\r\n%s\r\n",
                        path, (long long)start, (long long)(start + range_bytes - 1), headers);
    if (size >= (int)sizeof text || send(c->fd, text, (size_t)size, MSG_NOSIGNAL) != size)
        fail("a request could not be sent");
    c->head_size = 0;
    c->left = -1;
    c->asked_at = now();
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
        fail("an answer is not as long as was asked for");
    c->left = range_bytes - (int64_t)(c->head_size - (size_t)(end + 4 - c->head));
    if (c->left < 0) fail("an answer is longer than it says");
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
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    int poll = epoll_create1(0);
    Connection *all = calloc((size_t)n, sizeof *all);
    char *buffer = malloc(BUFFER);
    float *took = malloc(MOST * sizeof *took);
    if (all == NULL || buffer == NULL || took == NULL) fail("no memory");
    for (int i = 0; i < n; i++) {
        int one = 1;
        all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(all[i].fd, (struct sockaddr *)&to, sizeof to)) fail("no server answers");
        struct epoll_event about = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &about);
    }
    double began = now(), ends = began + seconds;
    for (int i = 0; i < n; i++) ask(&all[i]);
    int64_t answers = 0, bytes = 0;
    while (now() < ends) {
        struct epoll_event ready[64];
        int found = epoll_wait(poll, ready, 64, 1000);
        for (int i = 0; i < found; i++) {
            Connection *c = ready[i].data.ptr;
            ssize_t got;
            if (c->left < 0) {
                got = recv(c->fd, c->head + c->head_size, HEAD - 1 - c->head_size, 0);
                if (got > 0) {
                    c->head_size += (size_t)got;
                    read_head(c);
                }
            } else {
                size_t most = c->left < BUFFER ? (size_t)c->left : BUFFER;
                got = recv(c->fd, buffer, most, 0);
                if (got > 0) c->left -= got;
            }
            if (got <= 0 && errno != EINTR) fail("a connection ended");
            if (c->left) continue;
            if (answers < MOST) took[answers] = (float)(now() - c->asked_at);
            answers++;
            bytes += range_bytes;
            ask(c);
        }
    }
    double wall = now() - began;
    if (answers == 0) fail("nothing was answered");
    size_t known = answers < MOST ? (size_t)answers : MOST;
    qsort(took, known, sizeof *took, by_size);
    printf("{\"requests\": %lld, \"bytes\": %lld, \"seconds\": %.6f, \"p50_us\": %.0f, \"p99_us\": %.0f}\n",
           (long long)answers, (long long)bytes, wall, 1e6 * took[known / 2],
           1e6 * took[(size_t)(0.99 * (double)known)]);
    return 0;
}
