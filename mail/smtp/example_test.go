package smtp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// inbox takes mail for one address. What it leaves out, Accept accepts.
type inbox struct {
	smtp.Accept
}

func (inbox) Rcpt(_ context.Context, to smtp.Recipient) error {
	if to.Path.Local != "ann" {
		return smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no such user")
	}
	return nil
}

func (inbox) Message(_ context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	fmt.Printf("server: %q\n", content)
	return nil, nil
}

// A server and a client on one connection.
func Example() {
	ctx := context.Background()
	handler := smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return inbox{}, nil })
	server, err := smtp.NewServer(handler, smtp.ServerOptions{Hostname: "mx.example"})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(l) }()

	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	client, err := smtp.NewClient(ctx, nc, smtp.ClientOptions{LocalName: "client.example"})
	if err != nil {
		log.Fatal(err)
	}
	from, _ := smtp.ParseAddress("bob@client.example")
	ann, _ := smtp.ParseAddress("ann@mx.example")
	eve, _ := smtp.ParseAddress("eve@mx.example")
	refused, err := client.Envelope(ctx, smtp.Sender{Path: from}, []smtp.Recipient{{Path: ann}, {Path: eve}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("client:", refused)
	replies, err := client.Data(ctx, bytes.NewReader([]byte("Subject: hello\r\n\r\n.dots survive\r\n")))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("client:", replies[0])
	client.Quit(ctx)

	server.Shutdown(ctx)
	<-served
	// Output:
	// client: [<nil> 550 5.1.1 no such user]
	// server: "Subject: hello\r\n\r\n.dots survive\r\n"
	// client: 250 2.6.0 message accepted
}

// However an address is written, it is one value.
func ExampleParsePath() {
	a, _ := smtp.ParsePath(`<@relay.example:"ann"@BÜCHER.example>`)
	b, _ := smtp.ParsePath("<ann@xn--bcher-kva.example>")
	fmt.Println(a, a == b, a.Domain.Unicode())
	// Output: ann@xn--bcher-kva.example true bücher.example
}

// What is not known is temporary, and its cause stays with us.
func ExampleReplyOf() {
	err := fmt.Errorf("inbox: writing ann: %w", io.ErrShortWrite)
	r := smtp.ReplyOf(err)
	fmt.Println(r.Line())
	fmt.Println(r.Cause)
	// Output:
	// 451 4.3.0 internal error, try again later
	// inbox: writing ann: short write
}

// A message in one call, and what became of each recipient.
func ExampleDial() {
	ctx := context.Background()
	handler := smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return inbox{}, nil })
	server, err := smtp.NewServer(handler, smtp.ServerOptions{Hostname: "mx.example"})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(l) }()

	client, err := smtp.Dial(ctx, l.Addr().String(), smtp.DialOptions{
		TLS:           smtp.TLSOpportunistic,
		ClientOptions: smtp.ClientOptions{LocalName: "client.example"},
	})
	if err != nil {
		log.Fatal(err)
	}
	_, secure := client.TLS()
	fmt.Println("secure:", secure)

	bob, _ := smtp.ParseAddress("bob@client.example")
	ann, _ := smtp.ParseAddress("ann@mx.example")
	eve, _ := smtp.ParseAddress("eve@mx.example")
	envelope := smtp.Envelope{
		From: smtp.Sender{Path: bob, Return: smtp.ReturnHeaders, EnvID: "42"},
		To:   []smtp.Recipient{{Path: ann, Notify: smtp.NotifyFailure | smtp.NotifyDelay}, {Path: eve}},
	}
	result, err := client.Send(ctx, envelope, strings.NewReader("Subject: hello\n\n.dots survive, and line ends become CRLF\n"))
	fmt.Println("accepted:", result.Accepted, err)
	for _, e := range result.Rejected {
		fmt.Println("rejected:", e.Recipient, e.Code(), e.Enhanced(), e.Temporary())
	}
	fmt.Println("response:", result.Response)

	// Nobody takes this one, which is an error. It says so before the content is sent.
	envelope.To = envelope.To[1:]
	_, err = client.Send(ctx, envelope, strings.NewReader("Subject: hello\n"))
	if e, ok := errors.AsType[*smtp.ClientError](err); ok {
		fmt.Println("error:", e.Phase, e.Kind, e)
	}

	if err := client.Reset(ctx); err != nil {
		log.Fatal(err)
	}
	client.Quit(ctx)
	server.Shutdown(ctx)
	<-served
	// Output:
	// secure: false
	// server: "Subject: hello\r\n\r\n.dots survive, and line ends become CRLF\r\n"
	// accepted: [ann@mx.example] <nil>
	// rejected: eve@mx.example 550 5.1.1 false
	// response: 250 2.6.0 message accepted
	// error: RCPT refused smtp: RCPT <eve@mx.example>: 550 5.1.1 no such user
}
