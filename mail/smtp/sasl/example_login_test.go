package sasl_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
)

// provider takes mail from those who have a token.
type provider struct{ smtp.Accept }

var conn = sasl.Conn{AllowClear: true, Offered: []string{sasl.XOAuth2}} // for want of TLS in this example

func (provider) Mechanisms() []string { return conn.Offered }

func (provider) Auth(ctx context.Context, mechanism string) (smtp.Mechanism, error) {
	return sasl.New(ctx, mechanism, sasl.Credentials{
		Token: func(_ context.Context, r sasl.TokenRequest) (string, error) {
			if r.Token != "new" {
				return "", sasl.ErrDenied
			}
			return r.User, nil
		},
	}, conn)
}

// Submission with a token that is fetched anew when it has run out.
func ExampleLogIn() {
	ctx := context.Background()
	server, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return provider{}, nil }),
		smtp.ServerOptions{Hostname: "mx.example", Auth: smtp.AuthOptions{Required: true, Insecure: true, FailureDelay: -1}})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(l) }()

	// With TLS: smtp.TLSRequired and a provider that has TLS there is no need for ClearAuth.
	client, err := smtp.Dial(ctx, l.Addr().String(), smtp.DialOptions{ClientOptions: smtp.ClientOptions{LocalName: "client.example", ClearAuth: true}})
	if err != nil {
		log.Fatal(err)
	}
	ann, _ := smtp.ParseAddress("ann@example.com")
	message := smtp.Envelope{From: smtp.Sender{Path: ann}, To: []smtp.Recipient{{Path: ann}}}
	_, err = client.Send(ctx, message, strings.NewReader("Subject: to myself\r\n"))
	fmt.Println(err)

	account := sasl.Account{User: "ann@example.com", Token: "old"}
	err = sasl.LogIn(ctx, client, account, sasl.LoginOptions{Refresh: func(context.Context) (string, error) { return "new", nil }})
	fmt.Println(err, client.LoggedIn())

	result, err := client.Send(ctx, message, strings.NewReader("Subject: to myself\r\n"))
	fmt.Println(result.Accepted, result.Response, err)
	client.Quit(ctx)
	server.Shutdown(ctx)
	<-served
	// Output:
	// smtp: MAIL: 530 5.7.0 log in first
	// <nil> true
	// [ann@example.com] 250 2.6.0 message accepted <nil>
}
