package delivery_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/testnet"
	"github.com/penstock/penstock/mail/smtp"
)

// The examples have a mail host on this machine, and a resolver that knows it and nothing
// else. A program that sends to the Internet leaves both out: the zero DialOptions ask the
// resolver of the system and connect to port 25.

// host starts a mail host, which answers EHLO and QUIT and ends with the first connection, and returns its port.
func host() (port uint16, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "220 aspmx.example.net ESMTP\r\n")
		for lines := bufio.NewScanner(c); lines.Scan(); {
			switch verb, _, _ := strings.Cut(lines.Text(), " "); verb {
			case "EHLO":
				io.WriteString(c, "250-aspmx.example.net\r\n250 SIZE 1000000\r\n")
			case "QUIT":
				io.WriteString(c, "221 bye\r\n")
				return
			}
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), func() { l.Close(); <-done }
}

// plan is how the examples find it.
func plan(port uint16, signed ...string) delivery.PlanOptions {
	guard, err := mx.NewGuard(mx.GuardOptions{AllowLocal: true})
	if err != nil {
		panic(err)
	}
	zone := testnet.NewDNS(`
		example.com       MX 10 aspmx.example.net
		aspmx.example.net A  127.0.0.1
		nothing.example   MX 0  .
	`)
	zone.Add(fmt.Sprintf("_%d._tcp.aspmx.example.net TLSA 3 1 1 %s", port, strings.Repeat("0f", 32)))
	zone.Sign(signed...)
	return delivery.PlanOptions{MX: mx.Options{DNS: zone, Guard: guard}, Port: port}
}

// The first line that a mail host of a domain says.
func ExampleDial() {
	port, stop := host()
	defer stop()
	connection, err := delivery.Dial(context.Background(), "user@example.com", delivery.DialOptions{Plan: plan(port)})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer connection.Conn.Close()
	fmt.Printf("Connection to %s, the port as told: %t\n", connection.Hostname(), connection.Addr.Port() == port)
	io.CopyN(os.Stdout, connection.Conn, 29)
	// Output:
	// Connection to aspmx.example.net, the port as told: true
	// 220 aspmx.example.net ESMTP
}

// What went wrong, and what a sender is told about it.
func ExampleDial_error() {
	_, err := delivery.Dial(context.Background(), "user@nothing.example", delivery.DialOptions{Plan: plan(25)})
	if e, ok := errors.AsType[*mx.Error](err); ok {
		fmt.Println(e.Category, e.Temporary(), smtp.ReplyOf(err).Line())
	}
	// Output:
	// dns false 556 5.1.10 the recipient's domain takes no mail
}

// DANE needs no more than a resolver that validates. What the host must show is known before a
// word was said; a certificate that does not match its TLSA records is refused, and so is a
// host that does not offer TLS any more.
func ExampleDial_dane() {
	port, stop := host()
	defer stop()
	ctx := context.Background()
	connection, err := delivery.Dial(ctx, "user@example.com", delivery.DialOptions{Plan: plan(port, "example.com", "example.net")})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("DANE enabled:", connection.DANE())
	fmt.Println("TLSA records:", len(connection.TLSA()), "usage", connection.TLSA()[0].Usage)
	fmt.Println("TLS is required:", connection.RequireTLS(), "by", connection.Host.Why)
	_, err = delivery.NewSecurer(delivery.SecureOptions{}).Secure(ctx, connection.Conn, connection.Host,
		delivery.Approach{Client: smtp.ClientOptions{LocalName: "out.example"}})
	fmt.Println(smtp.ReplyOf(err).Line())
	// Output:
	// DANE enabled: true
	// TLSA records: 1 usage 3
	// TLS is required: true by 1 TLSA record at aspmx.example.net
	// 451 4.7.4 the host does not offer the TLS that this mail needs
}

// A connection that is brought to what the domain asks for: DANE and MTA-STS are applied if
// the host has TLSA records and the domain a policy.
func ExampleDial_secure() {
	port, stop := host()
	defer stop()
	ctx := context.Background()
	connection, err := delivery.Dial(ctx, "example.com", delivery.DialOptions{
		Plan:   plan(port),
		Source: delivery.Source{IPv4: netip.MustParseAddr("127.0.0.1"), Helo: "out.example"},
		Failed: func(t delivery.Tried) { fmt.Println(t.Err) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("DANE:", connection.DANE(), len(connection.TLSA()), "TLS is required:", connection.RequireTLS())
	session, err := delivery.NewSecurer(delivery.SecureOptions{}).Secure(ctx, connection.Conn, connection.Host,
		delivery.Approach{Client: smtp.ClientOptions{LocalName: connection.Helo}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("shown:", session.Shown, "because", session.Doubt)
	session.Client.Quit(ctx)
	// Output:
	// DANE: false 0 TLS is required: false
	// shown: clear because STARTTLS is not offered
}
