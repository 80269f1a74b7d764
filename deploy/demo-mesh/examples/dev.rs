use std::net::*; use std::io::*; use outrigger_demo::*; use outrigger_demo::service as s;
fn serve(l: TcpListener, text: &'static str) { std::thread::spawn(move || for c in l.incoming() { let mut c = c.unwrap(); let mut b=[0;2000]; let _=c.read(&mut b); let _=write!(c, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}", text.len(), text); }); }
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let f = |n: &str| a.iter().position(|x| x == n).map(|i| a[i+1].clone());
    let w: Vec<&str> = a.iter().skip(1).take(3).map(|s| s.as_str()).collect();
    match w.as_slice() {
        ["ca", "show", ..] => println!("PEM"),
        ["ca", ..] | ["discovery", ..] => { let _l = TcpListener::bind(f("--listen").unwrap()).unwrap(); loop { std::thread::park(); } }
        ["iptables", ..] => { for (v, p) in [(20, "10.77.0.20"), (30, "10.77.0.31"), (40, "10.77.0.40")] { assert!(std::process::Command::new("iptables").args(["-t","nat","-A","OUTPUT","-d",&format!("10.96.0.{v}"),"-p","tcp","-j","DNAT","--to-destination",p]).status().unwrap().success()); } }
        ["sidecar", ..] => {
            println!("{a:?} {:?}", std::env::vars().collect::<Vec<_>>());
            #[allow(unsafe_code)] let l = unsafe { <TcpListener as std::os::fd::FromRawFd>::from_raw_fd(3) };
            serve(l, "admin\n"); serve(TcpListener::bind("0.0.0.0:15021").unwrap(), "ok"); serve(TcpListener::bind("0.0.0.0:15020").unwrap(), "outrigger_requests_total{direction=\"outbound\",tls=\"mesh\",code=\"200\"} 3\n"); loop { std::thread::park(); } }
        ["demo", "supervise"] => { if let Err(e) = supervise() { eprintln!("{e}"); std::process::exit(1) } }
        ["demo", "hand-over", name] => { let e = hand_over(name, &a[4..].iter().map(|s| s.into()).collect::<Vec<_>>()); eprintln!("{e}"); std::process::exit(1) }
        ["demo", "service", "web"] => s::run(s::web::run(s::web::Settings{listen: f("--listen").unwrap().parse().unwrap(), api: "10.96.0.30:8080".into(), store: "10.96.0.40:6379".into()})).unwrap(),
        ["demo", "service", "api"] => s::run(s::api::run(s::api::Settings{listen: f("--listen").unwrap().parse().unwrap(), name: f("--name").unwrap(), slow: std::time::Duration::ZERO, fail_percent: 0})).unwrap(),
        ["demo", "service", "store"] => s::run(s::store::run(f("--listen").unwrap().parse().unwrap())).unwrap(),
        ["demo", "service", "relay"] => s::run(s::relay::run("10.96.0.20:8080".into())).unwrap(),
        ["demo", "service", "load"] => s::run(s::load::run("10.96.0.20:8080".into(), 5.try_into().unwrap())).unwrap(),
        _ => match start(&Settings{port: 8080, admin_ports: 15100, requests_per_second: 5, logs: None, access_log: false}) { Ok(c) => std::process::exit(if c == std::process::ExitCode::SUCCESS {0} else {1}), Err(e) => { eprintln!("{e}"); std::process::exit(1) } }
    }
}
