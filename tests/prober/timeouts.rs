//! Deadlines: every result ends by its own, whatever the other side does.

use std::time::Duration;

use leadsman::config::settings::HttpProbeConfig;
use leadsman::core::probe_result::Reason;
use leadsman::platform::clock;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::ask::{GOOD, SHORT, TIMEOUT, bad, check, check_within, prober, until};
use crate::support::script::{Step, answer, hang};
use crate::support::server::Server;

#[tokio::test]
async fn s26_c03_g18_a_target_that_does_not_answer() {
    let server = Server::plain(|_| hang()).await;
    let result = check_within(
        "S26",
        SHORT,
        server.url("/"),
        |_| {},
        bad(Reason::HeaderTimeout),
    )
    .await;
    assert_eq!(result.answer.status, None);
    assert_eq!(result.answer.ip, Some(server.address.ip()));
    assert!(result.phases.processing > SHORT / 2, "{result:?}");
    let explanation = result.explanation.unwrap();
    assert!(
        explanation.contains("400"),
        "names the timeout: {explanation}"
    );
}

#[tokio::test]
async fn a_body_that_does_not_end() {
    let server = Server::plain(|_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok";
        vec![Step::Bytes(head.into()), Step::Hang]
    })
    .await;
    let expected = bad(Reason::BodyTimeout);
    let result = check_within("body", SHORT, server.url("/"), |_| {}, expected).await;
    assert_eq!(result.answer.status, Some(200));
    assert_eq!(result.answer.content_length, Some(5));
    assert_eq!(result.answer.body_bytes, 2);
    assert!(result.phases.transfer > SHORT / 2, "{result:?}");
}

#[tokio::test]
async fn a_body_that_hangs_is_waited_for_also_where_nobody_asks_for_it() {
    let server = Server::plain(|_| {
        let head = "HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nok";
        vec![Step::Bytes(head.into()), Step::Hang]
    })
    .await;
    // The transport error comes first: the answer is not complete, so it is not judged.
    let expected = bad(Reason::BodyTimeout);
    check_within("body", SHORT, server.url("/"), |_| {}, expected).await;
}

#[tokio::test]
async fn redirects_share_one_deadline() {
    let redirect = SHORT / 2;
    let server = Server::plain(move |_| answer(302).header("Location", "/").after(redirect)).await;
    let change = |q: &mut HttpProbeConfig| q.redirects.max = 20;
    let expected = bad(Reason::HeaderTimeout);
    let result = check_within("redirects", SHORT, server.url("/"), change, expected).await;
    assert!(result.answer.redirects < 5);
}

#[tokio::test]
async fn a_connection_that_is_not_taken() {
    // A queue of one that is full: what comes then is dropped, as by a firewall.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let full = loop {
        let attempt = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(300), attempt).await {
            Ok(Ok(stream)) if waiting.len() < 64 => waiting.push(stream),
            Ok(_) => break false,
            Err(_) => break true,
        }
    };
    if !full {
        eprintln!("left out: this machine takes connections without end");
        return;
    }
    let expected = bad(Reason::ConnectTimeout);
    let url = format!("http://{address}/");
    let result = check_within("full", SHORT, url, |_| {}, expected).await;
    assert_eq!(result.answer.ip, Some(address.ip()));
    assert!(result.phases.connect > SHORT / 2, "{result:?}");
    assert!(result.phases.processing.is_zero());
}

#[tokio::test]
async fn latency_counts_from_the_due_time() {
    let server = Server::plain(|_| answer(200)).await;
    let prober = prober(server.url("/"), |_| {});
    let late = Duration::from_secs(3);
    let due = clock::now() - late;
    let result = prober.sound(due, TIMEOUT, None).await;
    assert_eq!(result.due, due);
    assert!(result.lateness() >= late);
    assert!(result.latency() >= late);
    assert_eq!(result.latency(), result.lateness() + result.duration());
}

#[tokio::test]
async fn c07_c11_a_result_that_is_dropped_leaves_nothing_behind() {
    let server = Server::plain(|_| hang()).await;
    let prober = prober(server.url("/"), |_| {});
    let result = prober.sound(clock::now(), TIMEOUT, None);
    let dropped = tokio::time::timeout(Duration::from_millis(200), result).await;
    assert!(dropped.is_err(), "it hangs");
    until("the request came", || server.requests().len() == 1).await;
    until("the connection is closed", || server.open() == 0).await;
}

#[tokio::test]
async fn results_of_one_prober_may_overlap() {
    let wait = Duration::from_millis(200);
    let server = Server::plain(move |r| match r.connection {
        0 => hang(),
        _ => crate::support::script::Script::from(answer(200).after(wait)),
    })
    .await;
    let prober = prober(server.url("/"), |_| {});
    let first = prober.sound(clock::now(), 4 * SHORT, None);
    let second = async {
        until("the first has begun", || server.requests().len() == 1).await;
        prober.sound(clock::now(), TIMEOUT, None).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.outcome, bad(Reason::HeaderTimeout));
    assert_eq!(second.outcome, GOOD);
    assert!(second.finished < first.finished);
}

#[tokio::test]
async fn an_answer_just_before_the_deadline_is_good() {
    let server = Server::plain(move |_| answer(200).after(SHORT)).await;
    check("in time", server.url("/"), |_| {}, GOOD).await;
}
