package smtp_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
)

// submission is one connection of somebody who has logged in to send mail.
// What it does not say itself, Accept accepts.
type submission struct{ smtp.Accept }

func connect(_ context.Context, c *smtp.Conn) (smtp.Session, error) {
	fmt.Println("server: connection from", c.RemoteAddr().(*net.TCPAddr).IP)
	return submission{}, nil
}

func (submission) Mechanisms() []string { return []string{sasl.Plain} }

func (submission) Auth(ctx context.Context, mechanism string) (smtp.Mechanism, error) {
	check := func(_ context.Context, user, password string) error {
		if user == "ann" && password == "wonderland" {
			return nil
		}
		return sasl.ErrDenied
	}
	return sasl.New(ctx, mechanism, sasl.Credentials{Password: check}, sasl.Conn{AllowClear: true})
}

func (submission) Mail(_ context.Context, from smtp.Sender) error {
	fmt.Println("server: from", from.Path)
	return nil
}

func (submission) Rcpt(_ context.Context, to smtp.Recipient) error {
	if to.Path.Domain.String() != "mx.example" {
		return smtp.Refuse(550, smtp.Enhanced{5, 7, 1}, "not for "+to.Path.Domain.String())
	}
	return nil
}

func (submission) Message(_ context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	content, err := io.ReadAll(body)
	fmt.Printf("server: %q\n", content)
	return nil, err
}

func (submission) Close(err error) { fmt.Println("server: closed,", err) }

// A server that asks for a login, and a client that logs in. A real one has ServerOptions.TLS
// in place of Auth.Insecure.
func ExampleServer() {
	ctx := context.Background()
	options := smtp.ServerOptions{Hostname: "mx.example", Auth: smtp.AuthOptions{Required: true, Insecure: true, FailureDelay: -1}}
	server, err := smtp.NewServer(smtp.HandlerFunc(connect), options)
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go server.Serve(l)
	submit(ctx, l.Addr().String())
	server.Shutdown(ctx)
	// Output:
	// server: connection from 127.0.0.1
	// client: 530 5.7.0 log in first
	// client: 535 5.7.8 authentication credentials invalid
	// server: from ann@mx.example
	// client: [<nil> 550 5.7.1 not for elsewhere.example]
	// server: "Subject: hello\r\n\r\nHow are you?\r\n"
	// client: 250 2.6.0 message accepted
	// server: closed, <nil>
}

// submit sends a message, after it has failed twice.
func submit(ctx context.Context, address string) {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	c, err := smtp.NewClient(ctx, nc, smtp.ClientOptions{LocalName: "client.example", ClearAuth: true})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ann, _ := smtp.ParseAddress("ann@mx.example")
	bob, _ := smtp.ParseAddress("bob@mx.example")
	eve, _ := smtp.ParseAddress("eve@elsewhere.example")
	_, err = c.Envelope(ctx, smtp.Sender{Path: ann}, []smtp.Recipient{{Path: bob}})
	fmt.Println("client:", err)

	for _, password := range []string{"looking-glass", "wonderland"} {
		plain, err := sasl.NewClient(sasl.Plain, sasl.Account{User: "ann", Password: password, AllowClear: true})
		if err != nil {
			log.Fatal(err)
		}
		if err := c.Auth(ctx, plain); err != nil {
			fmt.Println("client:", err)
		}
	}
	refused, err := c.Envelope(ctx, smtp.Sender{Path: ann}, []smtp.Recipient{{Path: bob}, {Path: eve}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("client:", refused)
	replies, err := c.Data(ctx, strings.NewReader("Subject: hello\r\n\r\nHow are you?\r\n"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("client:", replies[0])
	c.Quit(ctx)
}
