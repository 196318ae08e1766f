// SPDX-License-Identifier: Apache-2.0
/*
 * guest_net.c - pings to a neighbour, each with content of its own, which must come back as it went.
 *
 * So many are under way at once at most, and so no more can get lost when the guest is taken from one host to another.
 * What is answered late was not lost; what is answered wrongly, twice, or without having been asked, is damage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest.h"

#define INTERFACE "eth0"
#define ADDRESS "10.0.2.15"
#define NEIGHBOUR "10.0.2.2" /* where QEMU's own network has one who answers */
#define WORDS 175u /* a full frame */
#define BURST_NS 20000000ull
#define LATE_NS 1000000000ull
#define FIRST_ANSWER_NS 30000000000ull
#define REMEMBERED 4096u /* a power of two that divides 1 << 16 */

enum fate { UNKNOWN, UNDER_WAY, LOST, ANSWERED };

struct ping {
	struct icmphdr head;
	uint64_t words[WORDS]; /* the first is its number */
} __attribute__((packed));

struct sent {
	uint64_t number;
	uint64_t at_ns;
	enum fate fate;
};

static int wire = -1;
static unsigned int window;
static struct sent sent[REMEMBERED];
static uint64_t next_number = 1;
static uint64_t oldest = 1; /* no older one is under way */
static unsigned int under_way;
static pthread_t thread;
static atomic_bool ending;
static _Atomic uint64_t answered;
static _Atomic uint64_t lost;
static _Atomic uint64_t bad;

static uint64_t word_of(uint64_t number, unsigned int i)
{
	return i ? mix(number << 8 | i) : number;
}

static uint16_t checksum(const void *bytes, size_t length)
{
	const uint16_t *halves = bytes;
	uint32_t sum = 0;

	for (size_t i = 0; i < length / 2; i++)
		sum += halves[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return (uint16_t)~(sum + (sum >> 16));
}

static void send_one(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	uint64_t number = next_number++;
	struct ping ping = { .head.type = ICMP_ECHO };

	inet_pton(AF_INET, NEIGHBOUR, &to.sin_addr);
	ping.head.un.echo.sequence = htons((uint16_t)number);
	for (unsigned int i = 0; i < WORDS; i++)
		ping.words[i] = word_of(number, i);
	ping.head.checksum = checksum(&ping, sizeof(ping));
	sent[number % REMEMBERED] = (struct sent){ number, now_ns(), UNDER_WAY };
	under_way++;
	/* What could not be sent gets lost. */
	sendto(wire, &ping, sizeof(ping), 0, (struct sockaddr *)&to, sizeof(to));
}

static void give_up_late(void)
{
	for (; oldest < next_number; oldest++) {
		struct sent *one = &sent[oldest % REMEMBERED];

		if (one->fate == UNDER_WAY) {
			if (now_ns() < one->at_ns + LATE_NS)
				return;
			one->fate = LOST;
			under_way--;
			lost++;
		}
	}
}

static bool as_sent(const struct ping *ping, size_t length, uint64_t number)
{
	if (length != sizeof(*ping) || ping->head.un.echo.sequence != htons((uint16_t)number))
		return false;
	for (unsigned int i = 1; i < WORDS; i++)
		if (ping->words[i] != word_of(number, i))
			return false;
	return true;
}

static void take(const struct ping *ping, size_t length)
{
	uint64_t number = ping->words[0];
	struct sent *one = &sent[number % REMEMBERED];

	if (!as_sent(ping, length, number) || one->number != number || one->fate == ANSWERED) {
		bad++;
		complain("CORRUPT net=%lu %s", number, as_sent(ping, length, number) ? "unasked" : "torn");
		return;
	}
	if (one->fate == LOST)
		lost--;
	else
		under_way--;
	one->fate = ANSWERED;
	answered++;
}

static void take_all(void)
{
	struct {
		struct iphdr head;
		struct ping ping;
	} __attribute__((packed)) packet;
	ssize_t n;

	while ((n = recv(wire, &packet, sizeof(packet), MSG_DONTWAIT)) > 0)
		if (packet.ping.head.type == ICMP_ECHOREPLY)
			take(&packet.ping, (size_t)n - sizeof(packet.head));
}

static void *work(void *unused)
{
	struct pollfd readable = { .fd = wire, .events = POLLIN };

	for (uint64_t due = now_ns(); !ending;) {
		uint64_t now = now_ns();

		if (now < due) {
			poll(&readable, 1, (int)((due - now) / 1000000) + 1);
			take_all();
			continue;
		}
		due = now + BURST_NS;
		give_up_late();
		while (under_way < window)
			send_one();
	}
	return unused;
}

static void set_address(int request, const char *address)
{
	struct ifreq interface = { .ifr_name = INTERFACE };
	struct sockaddr_in *in = (struct sockaddr_in *)&interface.ifr_addr;

	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	if (ioctl(wire, (unsigned long)request, &interface))
		die(INTERFACE);
}

void net_start(int pings)
{
	struct ifreq up = { .ifr_name = INTERFACE, .ifr_flags = IFF_UP };
	uint64_t deadline = now_ns() + FIRST_ANSWER_NS;

	window = (unsigned int)pings;
	wire = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
	if (wire < 0)
		die("a socket for pings");
	set_address(SIOCSIFADDR, ADDRESS);
	set_address(SIOCSIFNETMASK, "255.255.255.0");
	if (ioctl(wire, SIOCSIFFLAGS, &up))
		die(INTERFACE);
	if (pthread_create(&thread, NULL, work, NULL))
		die("pthread_create");
	while (!answered) {
		errno = ETIMEDOUT;
		if (now_ns() > deadline)
			die("a ping to " NEIGHBOUR);
		sleep_until(now_ns() + BURST_NS);
	}
}

void net_finish(void)
{
	ending = true;
	pthread_join(thread, NULL);
}

uint64_t net_answered(void)
{
	return answered;
}

uint64_t net_lost(void)
{
	return lost;
}

uint64_t net_bad(void)
{
	return bad;
}
